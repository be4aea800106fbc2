"""Pixels to normalised latents and back, for the autoencoders of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], `(B, 3, H, W)` or `(B, 3, T, H, W)`, to normalised latents, fp32.

    The posterior's mode is taken, so that caches are deterministic.
    """
    latents = vae.encode(pixels.to(vae.device, vae.dtype) * 2 - 1).latent_dist.mode()
    mean, std = latent_statistics(vae, latents)
    return (latents.float() - mean) / std


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of `encode`, clamped to [0, 1]."""
    mean, std = latent_statistics(vae, latents)
    pixels = vae.decode((latents.to(vae.device) * std + mean).to(vae.dtype)).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def latent_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation by which a family normalises its latents, each broadcastable to `latents`, fp32.

    Read from the autoencoder's configuration: `scaling_factor` and `shift_factor` for all channels, or
    `latents_mean` and `latents_std` for each, divided by the `scaling_factor` if both are there.
    """
    facts = vae.config

    def stated(*names: str, default: float) -> Tensor:
        values = [facts[name] for name in names if facts.get(name) is not None]
        tensor = torch.tensor(values[0] if values else default, dtype=torch.float32, device=vae.device)
        return tensor.view(-1, *[1] * (latents.ndim - 2))

    mean = stated("latents_mean", "shift_factor", default=0.0)
    std = stated("latents_std", default=1.0) / stated("scaling_factor", default=1.0)
    return mean, std
