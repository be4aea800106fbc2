"""Sana."""

from __future__ import annotations

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model

from tests.families.cases import Case, Components
from tests.families.parts import gemma_tokenizer, language_model_sizes


def dc_vae() -> AutoencoderDC:
    """Six levels, the last with attention, as in DC-AE f32."""
    blocks = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    scales = ((),) * 5 + ((5,),)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def components() -> Components:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
    )
    return {
        "transformer": transformer,
        "vae": dc_vae(),
        "scheduler": DPMSolverMultistepScheduler(
            flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
        "text_encoder": Gemma2Model(Gemma2Config(**language_model_sizes())),
        "tokenizer": gemma_tokenizer(),
    }


CASES = {"sana": Case("sana", "SanaPipeline", components, latents=(4, 4, 6))}
