"""Kandinsky 5 Video."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel
from transformers import CLIPTextModel, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from tests.families.cases import Case, Components
from tests.families.parts import clip_config, clip_tokenizer, hunyuan_vae, qwen_tokenizer, qwen_vl, split_instruction


def processor() -> Qwen2VLProcessor:
    tokenizer = qwen_tokenizer()
    pipeline = Kandinsky5T2VPipeline(*[None] * 7)
    split_instruction(tokenizer, pipeline.prompt_template, pipeline.prompt_template_encode_start_idx)
    return Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())


def transformer(**changes: object) -> Kandinsky5Transformer3DModel:
    sizes = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 16, "time_dim": 16}
    sizes |= {"model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (4, 2, 2)}
    return Kandinsky5Transformer3DModel(**(sizes | {"visual_cond": True} | changes))


def components() -> Components:
    return {
        "transformer": transformer(),
        "vae": hunyuan_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder": qwen_vl(),
        "text_encoder_2": CLIPTextModel(clip_config()),
        "tokenizer": processor(),
        "tokenizer_2": clip_tokenizer(),
    }


CASES = {"kandinsky5_video": Case("kandinsky5_video", "Kandinsky5T2VPipeline", components, latents=(4, 3, 8, 12))}
