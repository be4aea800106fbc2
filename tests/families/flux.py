"""FLUX.1 [dev], which is told a guidance scale, and [schnell], which is not."""

from __future__ import annotations

from functools import partial

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import clip_config, clip_tokenizer, flux_vae, t5_sizes, t5_tokenizer


def components(*, guidance_embeds: bool) -> Components:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        "text_encoder": CLIPTextModel(clip_config()),
        "text_encoder_2": T5EncoderModel(T5Config(**t5_sizes())),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
    }


CASES = {
    name: Case("flux", "FluxPipeline", partial(components, guidance_embeds=name == "flux"), latents=(4, 8, 12))
    for name in ("flux", "flux_schnell")
}
