"""What tiny model folders are made of: tokenizers made on the spot, small text encoders, a small autoencoder."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5TokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A token a byte, and those of Qwen's chat template."""
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def split_instruction(tokenizer: Any, template: str, tokens: int) -> None:
    """Makes what `template` says before the prompt so many tokens, the number that a pipeline cuts off."""
    instruction = template.partition("{}")[0]
    ends = (instruction[start:] for start in range(len(instruction), 0, -1))
    end = next(text for text in ends if len(tokenizer.tokenize(text)) == tokens - 1)
    tokenizer.add_tokens([AddedToken(instruction.removesuffix(end), normalized=False)])
    assert len(tokenizer.tokenize(instruction)) == tokens


def gemma_tokenizer() -> GemmaTokenizer:
    """A token a printable character."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(ord("!"), ord("~") + 1))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=1024, add_bos_token=True)


def language_model_sizes(**changes: object) -> dict[str, Any]:
    """Of a decoder that serves as a text encoder, with a vocabulary large enough for the tokenizers here."""
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return sizes | {"max_position_embeddings": 1024} | changes


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of width 16."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    text = language_model_sizes(rope_parameters=rope, bos_token_id=None, eos_token_id=0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=eyes))


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


def flux_vae(channels: int) -> AutoencoderKL:
    """Normalised as in FLUX.1 and what took its autoencoder over."""
    facts = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    return image_vae(channels, use_quant_conv=False, use_post_quant_conv=False, **facts)


def hunyuan_vae(channels: int) -> AutoencoderKLHunyuanVideo:
    """Of videos; Kandinsky 5 took it over."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=channels, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
