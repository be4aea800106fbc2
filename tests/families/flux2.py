"""FLUX.2 [dev], which reads with Mistral and is told a guidance scale, and [klein], which reads with Qwen."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.families.cases import Case, Components
from tests.families.parts import CHAT_TEMPLATE, language_model_sizes, qwen_tokenizer

LAYERS_READ = 30  # the pipelines read hidden states up to so deep
MISTRAL_TEMPLATE = CHAT_TEMPLATE.replace("message.content", "message.content[0].text")


def shared(*, guidance_embeds: bool) -> Components:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance_embeds,
    )
    vae: Any = AutoencoderKLFlux2(block_out_channels=(4, 4, 4, 4), latent_channels=4, norm_num_groups=2, sample_size=64)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def dev() -> Components:
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=MISTRAL_TEMPLATE)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **language_model_sizes(num_hidden_layers=LAYERS_READ)},
        vision_config={"model_type": "pixtral", "head_dim": 8, "image_size": 64, "patch_size": 16, **vision},
    )
    encoder = Mistral3ForConditionalGeneration(config)
    return {**shared(guidance_embeds=True), "text_encoder": encoder, "tokenizer": processor}


def klein() -> Components:
    encoder = Qwen3ForCausalLM(Qwen3Config(**language_model_sizes(num_hidden_layers=LAYERS_READ)))
    return {**shared(guidance_embeds=False), "text_encoder": encoder, "tokenizer": qwen_tokenizer()}


CASES = {
    "flux2": Case("flux2", "Flux2Pipeline", dev, latents=(16, 4, 6)),
    "flux2_klein": Case("flux2", "Flux2KleinPipeline", klein, latents=(16, 4, 6), facts=(("is_distilled", False),)),
}
