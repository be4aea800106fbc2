"""LTX-Video 0.9, and 0.9.1, whose autoencoder denoises while it decodes."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from transformers import T5Config, T5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import t5_sizes, t5_tokenizer

CHANNELS = 8


def autoencoder(**changes: object) -> AutoencoderKLLTXVideo:
    sizes = {"block_out_channels": (4, 4, 4, 4), "layers_per_block": (1, 1, 1, 1, 1)}
    sizes |= {f"decoder_{name}": value for name, value in sizes.items()}
    vae = AutoencoderKLLTXVideo(latent_channels=CHANNELS, **sizes, **changes)
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, CHANNELS))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, CHANNELS))
    return vae


def components(*, timestep_conditioning: bool = False) -> Components:
    transformer = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=3,
        caption_channels=32,
    )
    shift = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
    return {
        "transformer": transformer,
        "vae": autoencoder(timestep_conditioning=timestep_conditioning),
        "scheduler": FlowMatchEulerDiscreteScheduler(base_image_seq_len=1024, **shift),
        "text_encoder": T5EncoderModel(T5Config(**t5_sizes())),
        "tokenizer": t5_tokenizer(),
    }


def case(make: object) -> Case:
    return Case("ltxvideo", "LTXPipeline", make, latents=(CHANNELS, 3, 4, 6))  # type: ignore[arg-type]


CASES = {"ltxvideo": case(components), "ltxvideo_timestep": case(partial(components, timestep_conditioning=True))}
