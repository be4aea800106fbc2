"""Batches that fit the tiny models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simpletuner.helpers.models.common import ModelFoundation
from tests.families import CASES


def text_batch(foundation: ModelFoundation, folder: str, size: int) -> dict[str, Tensor]:
    """The two prompts of the family in turn."""
    foundation.observe_captions(["cat", "dog"])
    prompts = foundation.encode_prompts(list(CASES[folder].prompts))
    return foundation.collate_text([prompts[row % 2] for row in range(size)])


def make_batch(foundation: ModelFoundation, folder: str, size: int = 2, **more: Any) -> dict[str, Any]:
    """What the data gives a training step."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(size, *CASES[folder].latents, generator=generator)
    _, height, width = CASES[folder].pixels
    sizes = torch.tensor([[height, width]]).expand(size, 2)
    geometry = {"original_sizes": sizes, "target_sizes": sizes, "crops": torch.zeros_like(sizes)}
    return {"latents": latents, "text": text_batch(foundation, folder, size), **geometry, **more}


def prepared(foundation: ModelFoundation, folder: str, size: int = 2, step: int = 0, **more: Any) -> dict[str, Any]:
    """A batch with noise and timesteps."""
    return foundation.prepare_batch(make_batch(foundation, folder, size, **more), step=step, rows=range(size))
