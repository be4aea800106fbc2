"""The model families, one row each. Nothing here imports torch or diffusers: the checks and the WebUI read it."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from simpletuner.configuration.family import Family

if TYPE_CHECKING:
    from simpletuner.helpers.models.common import ModelFoundation


def _transformer(name: str, model_class: str, *, tap: int, **facts: Any) -> Family:
    """A row of a transformer; `tap` is the default block, as published."""
    shared: dict[str, Any] = {"model_type": "transformer", "model_subfolder": "transformer", "media": "image"}
    return Family(name=name, model_class=model_class, default_block=tap, **(shared | facts))


def _unet(name: str, **facts: Any) -> Family:
    """A row of a diffusers UNet; `patch_size` is latents per mid-block cell."""
    shared: dict[str, Any] = {"model_type": "unet", "model_subfolder": "unet", "media": "image", "hidden_size": 1280}
    return Family(name=name, model_class="UNet2DConditionModel", depth_keys=(), **(shared | facts))


_VIDEO: dict[str, Any] = {"media": "video", "frame_ratio": 4}
_DOUBLE_AND_SINGLE = ("num_layers", "num_single_layers")
# Where no paper says which block to tap, it is REPA's share of the depth, 8 of 28 (arXiv 2410.06940).
_ROWS = (
    # Image transformers: REPA
    _transformer(
        "flux",
        "FluxTransformer2DModel",
        tap=8,
        depth=57,
        hidden_size=3072,
        depth_keys=_DOUBLE_AND_SINGLE,
        patch_key=None,
    ),
    _transformer(
        # Its latents are patches already.
        "flux2",
        "Flux2Transformer2DModel",
        tap=8,
        depth=56,
        hidden_size=6144,
        depth_keys=_DOUBLE_AND_SINGLE,
        latent_ratio=16,
        patch_size=1,
        patch_key=None,
    ),
    _transformer("sd3", "SD3Transformer2DModel", tap=8, depth=24, hidden_size=1536),
    _transformer(
        "chroma",
        "ChromaTransformer2DModel",
        tap=8,
        depth=57,
        hidden_size=3072,
        depth_keys=_DOUBLE_AND_SINGLE,
        patch_key=None,
    ),
    _transformer("sana", "SanaTransformer2DModel", tap=10, depth=20, hidden_size=2240, latent_ratio=32, patch_size=1),
    _transformer(
        "pixart", "PixArtTransformer2DModel", tap=10, depth=28, hidden_size=1152, prediction_types=("epsilon",)
    ),
    _transformer(
        "hidream", "HiDreamImageTransformer2DModel", tap=14, depth=48, hidden_size=2560, depth_keys=_DOUBLE_AND_SINGLE
    ),
    _transformer(
        "auraflow",
        "AuraFlowTransformer2DModel",
        tap=10,
        depth=36,
        hidden_size=3072,
        depth_keys=("num_mmdit_layers", "num_single_dit_layers"),
        positions_of_square=True,
    ),
    _transformer(
        "lumina2",
        "Lumina2Transformer2DModel",
        tap=8,
        depth=28,
        hidden_size=2304,
        depth_keys=("num_refiner_layers", "num_layers"),
    ),
    _transformer(
        "qwen_image", "QwenImageTransformer2DModel", tap=17, depth=60, hidden_size=3072, native_resolution=1328
    ),
    _transformer(
        "z_image",
        "ZImageTransformer2DModel",
        tap=9,
        depth=32,
        hidden_size=3840,
        depth_keys=("n_refiner_layers", "n_layers"),
        patch_key="all_patch_size",
    ),
    _transformer(
        "dit",
        "DiTTransformer2DModel",
        tap=8,
        depth=28,
        hidden_size=1152,
        native_resolution=256,
        pixel_space_without_vae=True,
        prediction_types=("flow_matching", "epsilon", "v_prediction"),
        square_only=True,
    ),
    # UNets: U-REPA
    _unet("sd1x", patch_size=8, native_resolution=512, prediction_types=("epsilon", "v_prediction")),
    _unet("sdxl", patch_size=4, prediction_types=("epsilon", "v_prediction")),
    _unet("kolors", patch_size=4, prediction_types=("epsilon",)),
    # Video transformers: CREPA
    _transformer("wan", "WanTransformer3DModel", tap=8, depth=30, hidden_size=1536, **_VIDEO, native_resolution=480),
    _transformer(
        "ltxvideo",
        "LTXVideoTransformer3DModel",
        tap=8,
        depth=28,
        hidden_size=2048,
        **_VIDEO | {"frame_ratio": 8},
        latent_ratio=32,
        patch_size=1,
        native_resolution=512,
    ),
    _transformer(
        "kandinsky5_video",
        "Kandinsky5Transformer3DModel",
        tap=8,
        depth=32,
        hidden_size=1792,
        **_VIDEO,
        depth_keys=("num_visual_blocks",),
        native_resolution=512,
    ),
    _transformer(
        "sanavideo", "SanaVideoTransformer3DModel", tap=10, depth=20, hidden_size=2240, **_VIDEO, native_resolution=480
    ),
    _transformer(
        # CREPA taps block 10 of it (arXiv 2506.09229).
        "hunyuanvideo",
        "HunyuanVideoTransformer3DModel",
        tap=10,
        depth=60,
        hidden_size=3072,
        **_VIDEO,
        depth_keys=_DOUBLE_AND_SINGLE,
        native_resolution=720,
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
    """Imports and returns the model foundation of a family; ValueError as `find_family`.

    Every family has a module of its name beside this one, and in it a foundation of its name in camel case.
    """
    module = import_module(f"simpletuner.helpers.models.{find_family(name).name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")) + "Foundation")


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
