"""AuraFlow."""

from __future__ import annotations

from diffusers import AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import image_vae, t5_sizes, t5_tokenizer


def components() -> Components:
    transformer = AuraFlowTransformer2DModel(
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return {
        "transformer": transformer,
        "vae": image_vae(4, scaling_factor=0.13025),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.73),
        "text_encoder": UMT5EncoderModel(UMT5Config(**t5_sizes())),
        "tokenizer": t5_tokenizer(),
    }


CASES = {"auraflow": Case("auraflow", "AuraFlowPipeline", components, latents=(4, 8, 12))}
