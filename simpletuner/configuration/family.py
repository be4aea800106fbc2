"""The facts about a model family that can be known without torch and without weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from simpletuner.configuration.general import PredictionType


@dataclass(frozen=True)
class Family:
    """One row of the registry.

    ``foundation`` is "module:Class". ``depth`` is the published number of blocks; the real one is the sum of
    ``depth_keys`` in the model's ``config.json``. ``latent_ratio`` is pixels per latent side, ``patch_size`` latents
    per token side (for a UNet: latents per mid-block cell) and ``patch_key`` its name in ``config.json`` (None where
    a pipeline packs the patches before the model sees them). ``frame_ratio`` is pixel frames per latent frame.
    ``pixel_space_without_vae``: a folder without a ``vae`` is trained on pixels, not refused. ``prediction_types`` is
    what the family can be trained to predict. ``square_only``: the model takes and makes square images. ``max_tokens``
    is the longest side in tokens that the model has positions for, if its ``config.json`` states one.
    """

    name: str
    foundation: str
    model_type: Literal["transformer", "unet"]
    media: Literal["image", "video"]
    model_class: str
    model_subfolder: str
    default_block: int | None = None
    depth: int | None = None
    depth_keys: tuple[str, ...] = ("num_layers",)
    hidden_size: int | None = None
    latent_ratio: int = 8
    patch_size: int = 2
    patch_key: str | None = "patch_size"
    frame_ratio: int = 1
    native_resolution: int = 1024
    pixel_space_without_vae: bool = False
    prediction_types: tuple[PredictionType, ...] = ("flow_matching",)
    square_only: bool = False
    max_tokens: int | None = None

    @property
    def pixels_per_token(self) -> int:
        """The side of one student token in pixels: image sides must be multiples of it."""
        return self.latent_ratio * self.patch_size


def with_local_facts(family: Family, folder: Path) -> Family:
    """The family with depth, patch size and latent ratio as a local model folder states them (no weights are read).

    Facts that the folder does not state stay as published. Raises ``ValueError`` or ``OSError`` for a
    ``config.json`` that is missing or broken.
    """
    model = _read_json(folder / family.model_subfolder / "config.json")
    facts: dict[str, Any] = {}
    if family.model_type == "unet":
        facts["patch_size"] = _halvings(model, "block_out_channels", family.patch_size)
    else:
        if family.depth_keys and all(isinstance(model.get(key), int) for key in family.depth_keys):
            facts["depth"] = sum(model[key] for key in family.depth_keys)
        patch = model.get(family.patch_key) if family.patch_key is not None else None
        facts["patch_size"] = _last_int(patch, family.patch_size)
        if isinstance(model.get("pos_embed_max_size"), int):
            facts["max_tokens"] = model["pos_embed_max_size"]
    vae = folder / "vae" / "config.json"
    if vae.is_file():
        facts["latent_ratio"] = _latent_ratio(_read_json(vae), family.latent_ratio)
    elif family.pixel_space_without_vae:
        facts["latent_ratio"] = 1
    return replace(family, **facts)


def family_of_folder(folder: Path, families: Iterable[Family]) -> Family | None:
    """The family whose model class a local folder names in its ``config.json``; None if it names none of them."""
    for family in families:
        file = folder / family.model_subfolder / "config.json"
        try:
            if _read_json(file).get("_class_name") == family.model_class:
                return family
        except (OSError, ValueError):
            continue
    return None


def _latent_ratio(vae: Mapping[str, Any], published: int) -> int:
    stated = vae.get("scale_factor_spatial")
    if isinstance(stated, int):
        return stated
    key = "block_out_channels" if "block_out_channels" in vae else "dim_mult"
    return _halvings(vae, key, published)


def _halvings(config: Mapping[str, Any], key: str, published: int) -> int:
    """A U-shaped network halves its input between every two of its levels."""
    levels = config.get(key)
    return 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else published


def _last_int(value: object, published: int) -> int:
    """A patch size is a number, or a list of them that ends with the width."""
    last = value[-1] if isinstance(value, list) and value else value
    return last if isinstance(last, int) else published


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
