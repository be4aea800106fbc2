"""Tiny model folders in diffusers' format: the real classes with random weights, made on the spot, no downloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

Components = dict[str, object]

WORDS = ["a", "photo", "of", "cat", "dog", "red", "blue", "car", "running", "sleeping"]
# SD 1.5's noise schedule.
DDIM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
DDIM |= {"set_alpha_to_one": False, "steps_offset": 1}


def clip_tokenizer() -> CLIPTokenizer:
    """A vocabulary of letters alone; the end token has the largest id, as in CLIP's own vocabulary."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """Whole words of a short list; anything else is unknown."""
    tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
    return T5TokenizerFast(vocab=tokens, extra_ids=0, model_max_length=512)


def clip_config(**changes: object) -> CLIPTextConfig:
    vocabulary = len(clip_tokenizer())
    sizes: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    return CLIPTextConfig(**(sizes | changes))


def t5_sizes() -> dict[str, int]:
    return {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def image_vae(channels: int, **changes: object) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=64,
        **changes,
    )


def dit() -> Components:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return {"transformer": transformer, "vae": image_vae(4), "scheduler": DDIMScheduler(**DDIM)}


def dit_pixels() -> Components:
    """No VAE: grey pixels of 8×8 are the latents, and there is no learned variance."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return {"transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler()}


def sd1x() -> Components:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return {
        "unet": unet,
        "vae": image_vae(4),
        "scheduler": DDIMScheduler(**DDIM),
        "text_encoder": CLIPTextModel(clip_config()),
        "tokenizer": clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
    }


def sd3() -> Components:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    return {
        "transformer": transformer,
        "vae": image_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": CLIPTextModelWithProjection(clip_config()),
        "text_encoder_2": CLIPTextModelWithProjection(clip_config()),
        "text_encoder_3": T5EncoderModel(T5Config(**t5_sizes())),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
    }


def wan() -> Components:
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


BUILDERS: dict[str, tuple[str, Callable[[], Components]]] = {
    "dit": ("DiTPipeline", dit),
    "dit_pixels": ("DiTPipeline", dit_pixels),
    "sd1x": ("StableDiffusionPipeline", sd1x),
    "sd3": ("StableDiffusion3Pipeline", sd3),
    "wan": ("WanPipeline", wan),
}


def tiny_folder(family: str, root: Path) -> Path:
    """Writes `root/family` in diffusers' folder format and returns it; the weights depend on the family alone."""
    pipeline, build = BUILDERS[family]
    folder = root / family
    index: dict[str, object] = {"_class_name": pipeline}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components = build()
        for name, component in components.items():
            if isinstance(component, torch.nn.Module):
                _leave_zero_initialisation(component)
            if component is not None:
                component.save_pretrained(folder / name)  # type: ignore[attr-defined]
            index[name] = (
                [type(component).__module__.split(".")[0], type(component).__name__] if component else [None] * 2
            )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def tiny_teacher(root: Path) -> Path:
    """Writes `root/teacher`, a DINOv2 of timm with one block and width 16, and returns it."""
    folder = root / "teacher"
    folder.mkdir()
    facts = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 56},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **facts["model_args"])
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def _leave_zero_initialisation(module: torch.nn.Module) -> None:
    """Diffusion models start with zeros in places, and then nothing depends on anything: draw those too."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
