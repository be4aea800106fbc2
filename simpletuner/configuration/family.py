"""The facts about a model family that can be known without torch and without weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from simpletuner.configuration.fields import OnlyFor
from simpletuner.configuration.general import PredictionType
from simpletuner.configuration.json_files import read_object
from simpletuner.configuration.paths import kind_of


@dataclass(frozen=True)
class Family:
    """One row of the registry.

    ``depth`` is the published number of blocks; the real one is the sum of ``depth_keys`` in the model's
    ``config.json``. ``latent_ratio`` is pixels per latent side, ``patch_size`` latents
    per token side (for a UNet: latents per mid-block cell) and ``patch_key`` its name in ``config.json`` (None where
    a pipeline packs the patches before the model sees them). ``frame_ratio`` is pixel frames per latent frame.
    ``pixel_space_without_vae``: a folder without a ``vae`` is trained on pixels, not refused. ``prediction_types`` is
    what the family can be trained to predict. ``square_only``: the model takes and makes square images. ``max_tokens``
    is the longest side in tokens that the model has positions for, if its ``config.json`` states one as
    ``pos_embed_max_size``; ``positions_of_square`` says that this counts those of a whole square, not of a side.
    ``stated`` names the facts that a local ``config.json`` states: all others are those of the published model, and a
    model on the hub may be of another size.
    """

    name: str
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
    positions_of_square: bool = False
    stated: frozenset[str] = frozenset()

    @property
    def pixels_per_token(self) -> int:
        """The side of one student token in pixels: image sides must be multiples of it."""
        return self.latent_ratio * self.patch_size

    def suits(self, only_for: OnlyFor | None) -> bool:
        """Whether an option that is only for such models has an effect here."""
        return only_for in (None, self.media, self.model_type)

    @property
    def alignment(self) -> str:
        """The method that aligns this kind of model with an encoder."""
        if self.model_type == "unet":
            return "U-REPA"
        return "CREPA" if self.media == "video" else "REPA"

    @property
    def teaching_block(self) -> int | None:
        """A block to begin with as the teacher of another: at two thirds of the depth, if that is deeper."""
        if self.depth is None or self.default_block is None:
            return None
        block = round(self.depth * 2 / 3)
        return block if block > self.default_block else None

    @property
    def native_tokens(self) -> int:
        """Rows, and columns, of student tokens in a square of the native resolution."""
        return self.native_resolution // self.pixels_per_token

    def described(self) -> dict[str, Any]:
        """The row as plain data, for people and programs."""
        return {
            "family": self.name,
            "type": f"{self.media} {self.model_type}",
            "class": self.model_class,
            "blocks": self.depth,
            "hidden_size": self.hidden_size,
            "default_tap": "mid" if self.model_type == "unet" else self.default_block,
            "alignment": self.alignment,
            "resolution": self.native_resolution,
            "token_grid": [self.native_tokens, self.native_tokens],
        }

    @property
    def token_is_stated(self) -> bool:
        """Whether ``pixels_per_token`` is this model's own, not that of the published one."""
        return {"latent_ratio", "patch_size"} <= self.stated

    def with_depth(self, depth: int) -> Family:
        """The family with its real number of blocks, and the block that is aligned by default among so many."""
        return replace(self, depth=depth, default_block=self.default_tap(depth), stated=self.stated | {"depth"})

    def default_tap(self, depth: int) -> int | None:
        """The block that is aligned where ``crepa_block_index`` is not set; None for a UNet.

        The family's default for models as deep as the published one or deeper. A shallower model is tapped at the
        same share of its depth (REPA taps block 8 of 28 and 4 of 12, arXiv 2410.06940), not before block 1 if there
        is one.
        """
        if self.default_block is None or self.depth is None or depth >= self.depth:
            return self.default_block
        return min(depth - 1, max(1, round(depth * self.default_block / self.depth)))


def with_local_facts(family: Family, folder: Path) -> Family:
    """The family with depth, patch size and latent ratio as a local model folder states them (no weights are read).

    Facts that the folder does not state stay as published. Raises ``ValueError`` or ``OSError`` for a
    ``config.json`` that is missing or broken.
    """
    model = read_object(folder / family.model_subfolder / "config.json")
    facts: dict[str, int | None] = {}
    depth = None
    if family.model_type == "unet":
        facts["patch_size"] = _halvings(model, "block_out_channels")
    else:
        parts = [_positive(model.get(key)) for key in family.depth_keys]
        depth = sum(part for part in parts if part is not None) if parts and None not in parts else None
        patch = model.get(family.patch_key) if family.patch_key is not None else family.patch_size
        facts["patch_size"] = _last_side(patch)
        positions = _positive(model.get("pos_embed_max_size"))
        if positions is not None and family.positions_of_square:
            positions = int(positions**0.5)  # of a table that diffusers lays out so; no token grid is guessed
        facts["max_tokens"] = positions
    vae = folder / "vae" / "config.json"
    if kind_of(vae) == "file":
        facts["latent_ratio"] = _latent_ratio(read_object(vae))
    elif family.pixel_space_without_vae:
        facts["latent_ratio"] = 1
    stated: dict[str, Any] = {name: value for name, value in facts.items() if value is not None}
    found = replace(family, **stated, stated=frozenset(stated))
    return found if depth is None else found.with_depth(depth)


def family_of_folder(folder: Path, families: Iterable[Family]) -> Family | None:
    """The family whose model class a local folder names in its ``config.json``; None if it names none of them."""
    for family in families:
        file = folder / family.model_subfolder / "config.json"
        try:
            if read_object(file).get("_class_name") == family.model_class:
                return family
        except (OSError, ValueError):
            continue
    return None


def _latent_ratio(vae: Mapping[str, Any]) -> int | None:
    stated = _positive(vae.get("scale_factor_spatial"))
    if stated is not None:
        return stated
    if isinstance(vae.get("spatio_temporal_scaling"), list):  # LTX-Video: patches first, then some levels halve
        return (_last_side(vae.get("patch_size")) or 1) * 2 ** sum(map(bool, vae["spatio_temporal_scaling"]))
    keys = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
    halvings = _halvings(vae, next((key for key in keys if key in vae), keys[0]))
    if halvings is not None and "batch_norm_eps" in vae:  # FLUX.2: some levels halve, then patches are normalised
        return (_last_side(vae.get("patch_size")) or 1) * halvings
    return halvings


def _last_side(patch: object) -> int | None:
    """A patch size is a number, or a list of them that ends with the width."""
    return _positive(patch[-1] if isinstance(patch, list) and patch else patch)


def _halvings(config: Mapping[str, Any], key: str) -> int | None:
    """A U-shaped network halves its input between every two of its levels."""
    levels = config.get(key)
    return 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else None


def _positive(value: object) -> int | None:
    """A number that can be a size; whatever else stands there is not believed."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
