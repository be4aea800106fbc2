"""SANA-Video at 480p."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoTransformer3DModel
from transformers import Gemma2Config, Gemma2Model

from tests.families.cases import Case, Components
from tests.families.parts import gemma_tokenizer, language_model_sizes


def components() -> Components:
    transformer = SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
    )
    return {
        "transformer": transformer,
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": DPMSolverMultistepScheduler(
            flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
        "text_encoder": Gemma2Model(Gemma2Config(**language_model_sizes())),
        "tokenizer": gemma_tokenizer(),
    }


CASES = {"sanavideo": Case("sanavideo", "SanaVideoPipeline", components, latents=(16, 3, 8, 12))}
