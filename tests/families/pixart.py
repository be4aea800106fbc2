"""PixArt-Σ, and PixArt-α at 1024 pixels, which is told the size of the image."""

from __future__ import annotations

from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import image_vae, t5_sizes, t5_tokenizer


def components(scaling_factor: float, use_additional_conditions: bool) -> Components:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        cross_attention_dim=24,
        sample_size=128,
        caption_channels=32,
        use_additional_conditions=use_additional_conditions,
    )
    return {
        "transformer": transformer,
        "vae": image_vae(4, scaling_factor=scaling_factor),
        "scheduler": DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        "text_encoder": T5EncoderModel(T5Config(**t5_sizes())),
        "tokenizer": t5_tokenizer(),
    }


CASES = {
    "pixart": Case("pixart", "PixArtSigmaPipeline", lambda: components(0.13025, False), latents=(4, 8, 12)),
    "pixart_alpha": Case("pixart", "PixArtAlphaPipeline", lambda: components(0.18215, True), latents=(4, 8, 12)),
}
