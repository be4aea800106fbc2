"""Chroma."""

from __future__ import annotations

from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import T5Config, T5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import flux_vae, t5_sizes, t5_tokenizer


def components() -> Components:
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": T5EncoderModel(T5Config(**t5_sizes())),
        "tokenizer": t5_tokenizer(),
    }


CASES = {"chroma": Case("chroma", "ChromaPipeline", components, latents=(4, 8, 12))}
