"""Lumina Image 2.0."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
from transformers import Gemma2Config, Gemma2Model

from tests.families.cases import Case, Components
from tests.families.parts import flux_vae, gemma_tokenizer, language_model_sizes


def components() -> Components:
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=16,
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
        "text_encoder": Gemma2Model(Gemma2Config(**language_model_sizes())),
        "tokenizer": gemma_tokenizer(),
    }


CASES = {"lumina2": Case("lumina2", "Lumina2Pipeline", components, latents=(4, 8, 12))}
