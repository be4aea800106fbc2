"""HiDream-I1."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImageTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.families.cases import Case, Components
from tests.families.parts import clip_config, clip_tokenizer, flux_vae, language_model_sizes, t5_sizes, t5_tokenizer


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, after the one that begins a text."""
    tokens = ["<|begin_of_text|>", "<|eot_id|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{tokens[0]} $A", special_tokens=[(tokens[0], 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=tokens[0], eos_token=tokens[1], model_max_length=1024
    )


def components() -> Components:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[32, 16],
        text_emb_dim=32,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(12, 12),
        llama_layers=[0, 1, 1, 1],
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": CLIPTextModelWithProjection(clip_config(max_position_embeddings=248)),
        "text_encoder_2": CLIPTextModelWithProjection(clip_config(max_position_embeddings=248)),
        "text_encoder_3": T5EncoderModel(T5Config(**t5_sizes())),
        "text_encoder_4": LlamaForCausalLM(LlamaConfig(**language_model_sizes())),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "tokenizer_4": llama_tokenizer(),
    }


CASES = {"hidream": Case("hidream", "HiDreamImagePipeline", components, latents=(4, 8, 12))}
