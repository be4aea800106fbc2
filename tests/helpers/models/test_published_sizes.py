"""The published models, built without their weights, are as the registry says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from simpletuner.configuration import Config
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.registry import FAMILIES, foundation_class
from simpletuner.helpers.training.crepa import mid_block_offset
from simpletuner.helpers.utils.hidden_state_buffer import UNetMidBlockCapture

SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
# What the published configurations state; the rest are the defaults of the classes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "flux": {"guidance_embeds": True},
    "flux2": {},
    "sd3": {
        "sample_size": 128,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    "chroma": {},
    "sana": {},
    "pixart": {"caption_channels": 4096, "use_additional_conditions": False},
    "hidream": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": [4096, 4096],
        "axes_dims_rope": [64, 32, 32],
        "llama_layers": [*range(32), *[31] * 16],
    },
    "auraflow": {"pos_embed_max_size": 9216},
    "lumina2": {"cap_feat_dim": 2304},
    "qwen_image": {},
    "z_image": {},
    "dit": {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_layers": 28,
        "in_channels": 4,
        "out_channels": 8,
        "sample_size": 32,
    },
    "sd1x": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "sample_size": 64,
    },
    "sdxl": SDXL,
    "kolors": SDXL
    | {
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 5632,
    },
    "wan": {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960},
    "ltxvideo": {},
    "kandinsky5_video": {
        "model_dim": 1792,
        "ff_dim": 7168,
        "num_visual_blocks": 32,
        "in_visual_dim": 16,
        "out_visual_dim": 16,
        "visual_cond": True,
    },
    "sanavideo": {},
    "hunyuanvideo": {},
}


def published(name: str) -> ModelFoundation:
    """A foundation around the published model on the meta device."""
    config = Config(model_family=name, pretrained_model_name_or_path="nowhere", mixed_precision="no")
    foundation = foundation_class(name)(config, Accelerator(cpu=True))
    with torch.device("meta"):
        foundation.model = foundation.MODEL_CLASS(**PUBLISHED[name])
    return foundation


def test_every_family_is_here() -> None:
    assert set(PUBLISHED) == set(FAMILIES)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.model_type == "transformer"])
def test_depth_width_and_token_grid(name: str) -> None:
    foundation = published(name)
    family = foundation.family
    assert len(foundation.blocks) == family.depth
    assert foundation.hidden_size == family.hidden_size
    assert foundation.tap == family.default_block
    side = family.native_resolution // family.latent_ratio
    frames = (1,) if family.media == "video" else ()
    grid = foundation.student_grid(torch.zeros(1, 4, *frames, side, side, device="meta"))
    assert (grid.height, grid.width) == (family.native_tokens, family.native_tokens)


@pytest.mark.parametrize(("name", "cells", "offset"), [("sd1x", 8, 0.4375), ("sdxl", 32, 0.375), ("kolors", 32, 0.375)])
def test_mid_blocks(name: str, cells: int, offset: float) -> None:
    """SD 1.5 at 512² has 8×8 cells, SDXL and Kolors at 1024² 32×32."""
    foundation = published(name)
    unet: Any = foundation.model.eval()
    family = foundation.family
    assert foundation.hidden_size == family.hidden_size == 1280
    assert family.native_tokens == cells
    capture = UNetMidBlockCapture(unet)
    side = family.native_resolution // 8
    text = torch.zeros(1, 77, PUBLISHED[name].get("encoder_hid_dim", unet.config.cross_attention_dim), device="meta")
    pooled = 4096 if name == "kolors" else 1280
    added = {"text_embeds": torch.zeros(1, pooled, device="meta"), "time_ids": torch.zeros(1, 6, device="meta")}
    with torch.no_grad(), capture as buffer:
        unet(torch.zeros(1, 4, side, side, device="meta"), torch.zeros(1, device="meta"), text, added_cond_kwargs=added)
    assert buffer["layer_mid"].shape == (1, 1280, cells, cells)
    assert mid_block_offset(unet) == -offset
