"""What a sample is to be like, and turning sampled pixels into images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        height, width, frames: in pixels.
        steps: of denoising.
        guidance: scale of classifier-free guidance; 1 is none.
        seed: of the first sample, from which the others count on; or a seed for each.
        guidance_interval: lowest and highest noise level, of 0 to 1, at which there is guidance (arXiv 2404.07724);
            None is all of them.
    """

    height: int
    width: int
    steps: int
    guidance: float
    seed: int | tuple[int, ...]
    frames: int = 1
    guidance_interval: tuple[float, float] | None = None

    def generators(self, count: int) -> list[torch.Generator]:
        """One for each sample, so that a sample is the same whatever it is batched with."""
        seeds = self.seed if isinstance(self.seed, tuple) else range(self.seed, self.seed + count)
        if len(seeds) != count:
            raise ValueError(f"seed: {len(seeds)} seeds for {count} samples; give one each.")
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def guidance_at(self, level: float) -> float:
        """The guidance scale at a noise level from 0 (data) to 1 (noise): 1 outside the interval."""
        low, high = (0.0, 1.0) if self.guidance_interval is None else self.guidance_interval
        return self.guidance if low <= level <= high else 1.0


class IntervalGuidance:
    """Stands for the model of a pipeline that guides in one batch, the unconditional half first, at all steps alike.

    Where there is to be no guidance, both halves get the conditional prediction: whatever the scale, their combination
    is that prediction, exactly. It takes the time of guidance all the same.
    """

    def __init__(self, model: Any, scheduler: Any, settings: SampleSettings) -> None:
        self._model, self._scheduler, self._settings, self._calls = model, scheduler, settings, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
        prediction, *rest = self._model(*arguments, **named)
        level = float(self._scheduler.timesteps[self._calls]) / self._scheduler.config.num_train_timesteps
        self._calls += 1
        if self._settings.guidance_at(level) == 1:
            conditional = prediction.chunk(2)[1]
            prediction = torch.cat([conditional, conditional])
        return (prediction, *rest)


def to_images(pixels: Tensor) -> list[list[Image.Image]]:
    """Pixels `(B, T, 3, H, W)` in [0, 1] to a list of frames for each sample."""
    arrays = (pixels * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(frame) for frame in clip] for clip in arrays]
