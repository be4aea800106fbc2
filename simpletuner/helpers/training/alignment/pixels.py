"""From latents back to pixels, for a teacher that has neither cached features nor the real pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def decode_latents(latents: Tensor, vae: Any) -> Tensor:
    """Decodes normalised latents `(B, C, H, W)` or `(B, C, T, H, W)` with a diffusers VAE to pixels in [0, 1].

    Undoes `scaling_factor` and `shift_factor`, or `latents_mean` and `latents_std`, of the VAE's configuration.

    Returns:
        `(B, T, 3, H, W)`.
    """
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        latents = latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)
    else:
        shift = config.get("shift_factor")
        latents = latents / config["scaling_factor"] + (0.0 if shift is None else shift)
    pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()
    pixels = (pixels / 2 + 0.5).clamp(0, 1)
    return pixels[:, None] if pixels.ndim == 4 else pixels.transpose(1, 2)
