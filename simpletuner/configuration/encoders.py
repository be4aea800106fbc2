"""What the name of a teacher says, without loading it."""

from __future__ import annotations

import re
from pathlib import Path

from simpletuner.configuration.json_files import read_object
from simpletuner.configuration.paths import kind_of, local_path, looks_like_path, missing_path
from simpletuner.configuration.validation import nearest

DINOV2 = [f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")]
WIDTHS = {"s": 384, "b": 768, "l": 1024, "g": 1536}
NAMED_ENCODERS = [*DINOV2, "efficientnet_lite0"]


def encoder_patch(name: str) -> int | None:
    """The side of the encoder's patch in pixels, if the name tells: 14 for dinov2_vitb14."""
    match = re.fullmatch(r"dinov2_vit[sblg](14)(?:_reg)?", name) or re.search(r"^timm/.*patch(\d+)", name)
    return int(match[1]) if match else None


def encoder_width(name: str) -> int | None:
    """The width of the encoder's tokens, if the name tells."""
    match = re.fullmatch(r"dinov2_vit([sblg])14(?:_reg)?", name)
    return WIDTHS[match[1]] if match else None


def unknown_encoder(name: str) -> tuple[str, str] | None:
    """Message and mend for a name that is no teacher; None if it may be one."""
    if looks_like_path(name):
        return missing_path(name) or _unusable_folder(local_path(name))
    if name in NAMED_ENCODERS or (name.startswith("timm/") and name != "timm/"):
        return None
    mend = nearest(name, NAMED_ENCODERS) or f"Use one of {', '.join(NAMED_ENCODERS)}, timm/<name>, or a local path."
    return f"{name!r} is no known encoder", mend


def _unusable_folder(path: Path) -> tuple[str, str] | None:
    """Message and mend for a local path that is no safetensors file with timm's ``config.json`` beside it."""
    weights = path / "model.safetensors" if kind_of(path) == "folder" else path
    description = weights.with_name("config.json")
    mend = "Name a folder with timm's config.json and model.safetensors, or such a safetensors file."
    if weights.suffix != ".safetensors" or kind_of(weights) != "file":
        return f"{str(path)!r} holds no model.safetensors", mend
    if kind_of(description) != "file":
        return f"{str(weights)!r} has no config.json beside it", mend
    try:
        facts = read_object(description)
    except (OSError, ValueError) as error:
        return f"{str(description)!r} can't be read ({error})", "Mend that file, or get the encoder again."
    if not isinstance(facts.get("architecture"), str):
        return f"{str(description)!r} names no architecture", "Use the config.json that timm writes."
    return None
