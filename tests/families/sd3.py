"""Stable Diffusion 3."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import clip_config, clip_tokenizer, image_vae, t5_sizes, t5_tokenizer


def components() -> Components:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    return {
        "transformer": transformer,
        "vae": image_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": CLIPTextModelWithProjection(clip_config()),
        "text_encoder_2": CLIPTextModelWithProjection(clip_config()),
        "text_encoder_3": T5EncoderModel(T5Config(**t5_sizes())),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
    }


CASES = {"sd3": Case("sd3", "StableDiffusion3Pipeline", components, latents=(16, 8, 12))}
