"""The model families, one row each. Nothing here imports torch or diffusers: the checks and the WebUI read it."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from simpletuner.configuration.family import Family

if TYPE_CHECKING:
    from simpletuner.helpers.models.common import ModelFoundation

_ROWS = (
    Family(
        name="dit",
        foundation="simpletuner.helpers.models.dit:DitFoundation",
        model_type="transformer",
        media="image",
        model_class="DiTTransformer2DModel",
        model_subfolder="transformer",
        default_block=8,
        depth=28,
        hidden_size=1152,
        native_resolution=256,
        pixel_space_without_vae=True,
        prediction_types=("flow_matching", "epsilon", "v_prediction"),
        square_only=True,
    ),
    Family(
        name="sd1x",
        foundation="simpletuner.helpers.models.sd1x:Sd1xFoundation",
        model_type="unet",
        media="image",
        model_class="UNet2DConditionModel",
        model_subfolder="unet",
        depth_keys=(),
        hidden_size=1280,
        patch_size=8,
        native_resolution=512,
        prediction_types=("epsilon", "v_prediction"),
    ),
    Family(
        name="sd3",
        foundation="simpletuner.helpers.models.sd3:Sd3Foundation",
        model_type="transformer",
        media="image",
        model_class="SD3Transformer2DModel",
        model_subfolder="transformer",
        default_block=8,
        depth=24,
        hidden_size=1536,
    ),
    Family(
        name="wan",
        foundation="simpletuner.helpers.models.wan:WanFoundation",
        model_type="transformer",
        media="video",
        model_class="WanTransformer3DModel",
        model_subfolder="transformer",
        default_block=8,
        depth=30,
        hidden_size=1536,
        frame_ratio=4,
        native_resolution=480,
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}


def find_family(name: str) -> Family:
    """The row called `name`; ValueError with the nearest name if there is none."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? Known" if near else "known"
        raise ValueError(f"model_family is {name!r}; {hint} families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def foundation_class(name: str) -> type[ModelFoundation]:
    """Imports and returns the model foundation of a family; ValueError as `find_family`."""
    module, _, attribute = find_family(name).foundation.partition(":")
    return getattr(import_module(module), attribute)


def family_of_class(model_class: str) -> Family:
    """The first row whose diffusers model is `model_class`; ValueError if no family has it."""
    for family in _ROWS:
        if family.model_class == model_class:
            return family
    known = ", ".join(sorted({family.model_class for family in _ROWS}))
    raise ValueError(f"No family is known for the model class {model_class!r}; known classes: {known}.")


def default_tap(family: Family, depth: int) -> int:
    """The block that is aligned where `crepa_block_index` is not set: `Family.default_tap`; ValueError for a UNet."""
    tap = family.default_tap(depth)
    if tap is None:
        raise ValueError(f"{family.name} has no blocks to tap; crepa_* options are for transformers.")
    return tap
