"""HunyuanVideo, and one that isn't distilled from guidance."""

from __future__ import annotations

from functools import partial

from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import pre_tokenizers
from transformers import CLIPTextModel, LlamaConfig, LlamaModel, LlamaTokenizerFast

from tests.families.cases import Case, Components
from tests.families.parts import (
    clip_config,
    clip_tokenizer,
    hunyuan_vae,
    language_model_sizes,
    split_instruction,
)


def llama3_tokenizer() -> LlamaTokenizerFast:
    """A token a byte; in the class that the published model names, which is Llama 2's and can't read it back."""
    tokens = ["<|end_of_text|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), tokens[0])
    tokenizer = LlamaTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}, merges=[], **special)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split_instruction(tokenizer, DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"])
    return tokenizer


def components(*, guidance_embeds: bool = True) -> Components:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        guidance_embeds=guidance_embeds,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 2, 2),
    )
    return {
        "transformer": transformer,
        "vae": hunyuan_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": LlamaModel(LlamaConfig(**language_model_sizes(num_hidden_layers=3))),
        "text_encoder_2": CLIPTextModel(clip_config()),
        "tokenizer": llama3_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
    }


def case(make: object) -> Case:
    return Case("hunyuanvideo", "HunyuanVideoPipeline", make, latents=(4, 3, 8, 12))  # type: ignore[arg-type]


CASES = {"hunyuanvideo": case(components), "hunyuanvideo_undistilled": case(partial(components, guidance_embeds=False))}
