"""Batches that fit the tiny models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simpletuner.helpers.models.common import ModelFoundation

# Non-square, and several frames for video; a DiT is square only.
LATENTS = {"dit": (4, 8, 8), "dit_pixels": (1, 8, 8), "sd1x": (4, 8, 16), "sd3": (16, 8, 12), "wan": (16, 3, 8, 12)}
PROMPTS = {"dit": "cat", "dit_pixels": "cat", "sd1x": "a photo of a cat", "sd3": "a red car", "wan": "dog running"}


def text_batch(foundation: ModelFoundation, folder: str, size: int) -> dict[str, Tensor]:
    foundation.observe_captions(["cat", "dog"])
    return foundation.collate_text(foundation.encode_prompts([PROMPTS[folder]]) * size)


def make_batch(foundation: ModelFoundation, folder: str, size: int = 2, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(size, *LATENTS[folder], generator=generator)
    return {"latents": latents, "text": text_batch(foundation, folder, size), **more}


def prepared(foundation: ModelFoundation, folder: str, size: int = 2, step: int = 0, **more: Any) -> dict[str, Any]:
    return foundation.prepare_batch(make_batch(foundation, folder, size, **more), step=step, rows=range(size))
