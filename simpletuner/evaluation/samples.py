"""Samples of a class-conditional flow-matching model, for measuring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(latents (n, C, H, W), timesteps (n,) in 0..1000, labels (n,)) -> velocity (n, C, H, W)`, which is noise - data."""


@torch.no_grad()
def sample_flow(velocity: Velocity, noise: Tensor, labels: Tensor, *, steps: int = 25, batch_size: int = 250) -> Tensor:
    """Integrates from noise to data by Euler steps with diffusers' scheduler; no guidance.

    The same noise and labels give the same samples, so that arms and steps of a run are compared on equal noise.

    Args:
        velocity: the model, in evaluation mode, weights as they shall be measured (EMA).
        noise: `(n, C, H, W)`, standard normal.
        labels: `(n,)`.

    Returns:
        Latents `(n, C, H, W)`; for pixel models see `latents_to_pixels`.

    Raises:
        ValueError: the numbers of noise tensors and labels differ.
    """
    if labels.shape != (len(noise),):
        raise ValueError(f"labels: shape {tuple(labels.shape)} for {len(noise)} samples; give one label a sample")
    return torch.cat(
        [
            _integrate(velocity, chunk, chunk_labels, steps)
            for chunk, chunk_labels in zip(noise.split(batch_size), labels.split(batch_size), strict=True)
        ]
    )


def latents_to_pixels(latents: Tensor) -> Tensor:
    """`[-1, 1]` of a pixel-space model to `[0, 1]`, clipped."""
    return ((latents + 1) / 2).clamp(0, 1)


def labels_like(reference: Tensor, count: int, classes: int) -> Tensor:
    """`(count,)` labels in the class shares of `reference` `(n,)`, to within one: 0, 1, .. classes - 1, 0, 1, ..

    A class is left out of further rounds once it has its share, so with equal shares all rounds are full. Otherwise a
    distance between samples and `reference` would tell of the shares too.
    """
    shares = reference.bincount(minlength=classes) * count / len(reference)
    counts = shares.floor().long()
    # What rounding left over goes to the largest remainders, the first of equal ones.
    remainders = (shares - counts).argsort(descending=True, stable=True)
    counts[remainders[: count - int(counts.sum())]] += 1
    rounds = torch.arange(int(counts.max())).unsqueeze(1) < counts
    return rounds.nonzero()[:, 1]


def _integrate(velocity: Velocity, latents: Tensor, labels: Tensor, steps: int) -> Tensor:
    scheduler: Any = FlowMatchEulerDiscreteScheduler()  # its class has no type hints
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        predicted = velocity(latents, timestep.expand(len(latents)), labels)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return latents
