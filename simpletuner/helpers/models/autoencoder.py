"""Pixels to normalised latents, with the autoencoders of diffusers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simpletuner.helpers.training.alignment.pixels import latent_statistics


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], `(B, 3, H, W)` or `(B, 3, T, H, W)`, to normalised latents, fp32.

    The posterior's mode is taken, so that caches are deterministic.
    """
    encoded = vae.encode(pixels.to(vae.device, vae.dtype) * 2 - 1)
    latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latent  # DC-AE has no distribution
    mean, std = latent_statistics(vae, latents)
    return (latents.float() - mean) / std
