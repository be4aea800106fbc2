"""Wan 2.1."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from tests.families.cases import Case, Components
from tests.families.parts import t5_sizes, t5_tokenizer


def components() -> Components:
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=3
    )
    return {
        "transformer": transformer,
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": UMT5EncoderModel(UMT5Config(**t5_sizes())),
        "tokenizer": t5_tokenizer(),
    }


CASES = {"wan": Case("wan", "WanPipeline", components, latents=(16, 3, 8, 12))}
