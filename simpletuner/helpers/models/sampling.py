"""What a sample is to be like, and turning sampled pixels into images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class SampleSettings:
    """How to sample: size in pixels and pixel frames, denoising steps, guidance scale (1: none), seed."""

    height: int
    width: int
    steps: int
    guidance: float
    seed: int
    frames: int = 1

    def generators(self, count: int) -> list[torch.Generator]:
        """One for each sample, so that a sample is the same whatever it is batched with."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(count)]


def to_images(pixels: Tensor) -> list[list[Image.Image]]:
    """Pixels `(B, T, 3, H, W)` in [0, 1] to a list of frames for each sample."""
    arrays = (pixels * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(frame) for frame in clip] for clip in arrays]
