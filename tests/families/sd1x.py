"""Stable Diffusion 1.x."""

from __future__ import annotations

from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from tests.families.cases import Case, Components
from tests.families.parts import DDIM, clip_config, clip_tokenizer, image_vae


def components() -> Components:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return {
        "unet": unet,
        "vae": image_vae(4),
        "scheduler": DDIMScheduler(**DDIM),
        "text_encoder": CLIPTextModel(clip_config()),
        "tokenizer": clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
    }


CASES = {"sd1x": Case("sd1x", "StableDiffusionPipeline", components, latents=(4, 8, 16))}
