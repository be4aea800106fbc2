"""Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.families.cases import Case, Components
from tests.families.parts import DDIM, clip_config, clip_tokenizer, image_vae


def unet(**text: Any) -> UNet2DConditionModel:
    """Three levels, without attention at the first; the pooled text is 16 wide.

    With fewer channels, random convolutions lean to a side by chance, and the mid-block with them.
    """
    return UNet2DConditionModel(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        norm_num_groups=4,
        sample_size=16,
        **text,
    )


def components() -> Components:
    return {
        "unet": unet(cross_attention_dim=32),
        "vae": image_vae(4, scaling_factor=0.13025),
        "scheduler": DDIMScheduler(**DDIM),
        "text_encoder": CLIPTextModel(clip_config()),
        "text_encoder_2": CLIPTextModelWithProjection(clip_config()),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "feature_extractor": None,
        "image_encoder": None,
    }


FACTS = (("force_zeros_for_empty_prompt", True),)
CASES = {"sdxl": Case("sdxl", "StableDiffusionXLPipeline", components, latents=(4, 8, 12), facts=FACTS)}
