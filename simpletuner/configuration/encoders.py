"""What the name of a teacher says, without loading it."""

from __future__ import annotations

import re

from simpletuner.configuration.paths import looks_like_path, missing_path
from simpletuner.configuration.validation import nearest

DINOV2 = [f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")]
NAMED_ENCODERS = [*DINOV2, "efficientnet_lite0"]


def encoder_patch(name: str) -> int | None:
    """The side of the encoder's patch in pixels, if the name tells: 14 for dinov2_vitb14."""
    match = re.fullmatch(r"dinov2_vit[sblg](14)(?:_reg)?", name) or re.search(r"^timm/.*patch(\d+)", name)
    return int(match[1]) if match else None


def unknown_encoder(name: str) -> tuple[str, str] | None:
    """Message and mend for a name that is no teacher; None if it may be one."""
    if looks_like_path(name):
        return missing_path(name)
    if name in NAMED_ENCODERS or name.startswith("timm/"):
        return None
    mend = nearest(name, NAMED_ENCODERS) or f"Use one of {', '.join(NAMED_ENCODERS)}, timm/<name>, or a local path."
    return f"{name!r} is no known encoder", mend
