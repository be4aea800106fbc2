"""Z-Image."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from tests.families.cases import Case, Components
from tests.families.parts import flux_vae, language_model_sizes, qwen_tokenizer


def components() -> Components:
    """With its chat template one prompt has more than 32 tokens, to which the model pads text, and one has less."""
    transformer = ZImageTransformer2DModel(
        dim=16,
        in_channels=4,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 16, 16],
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": Qwen3Model(Qwen3Config(**language_model_sizes())),
        "tokenizer": qwen_tokenizer(),
    }


CASES = {"z_image": Case("z_image", "ZImagePipeline", components, latents=(4, 8, 12))}
