"""From latents back to pixels, with the autoencoders of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def decode_latents(latents: Tensor, vae: Any) -> Tensor:
    """Decodes normalised latents `(B, C, H, W)` or `(B, C, T, H, W)` to pixels in [0, 1], clamped.

    Returns:
        `(B, T, 3, H, W)`; images have T = 1.
    """
    mean, std = latent_statistics(vae, latents)
    # Some autoencoders of LTX-Video denoise a little while they decode: at time 0, as its pipeline has it.
    times = (torch.zeros(len(latents), device=vae.device),) if vae.config.get("timestep_conditioning") else ()
    pixels = vae.decode((latents.to(vae.device) * std + mean).to(vae.dtype), *times).sample
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1)
    return pixels[:, None] if pixels.ndim == 4 else pixels.transpose(1, 2)


def latent_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation by which a family normalises its latents, each broadcastable to `latents`, fp32.

    Read from the autoencoder's configuration: `scaling_factor` and `shift_factor` for all channels, or
    `latents_mean` and `latents_std` for each, divided by the `scaling_factor` if both are there. Those of each channel
    may be buffers beside the weights instead.
    """
    facts = vae.config

    def stated(*names: str, default: float) -> Tensor:
        values = [facts[name] for name in names if facts.get(name) is not None]
        values += [getattr(vae, name) for name in names if name in vae._buffers]
        tensor = torch.as_tensor(values[0] if values else default, dtype=torch.float32, device=vae.device)
        return tensor.view(-1, *[1] * (latents.ndim - 2))

    mean = stated("latents_mean", "shift_factor", default=0.0)
    std = stated("latents_std", default=1.0) / stated("scaling_factor", default=1.0)
    return mean, std
