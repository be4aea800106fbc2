"""Kolors."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from sentencepiece import SentencePieceTrainer

from tests.families.cases import Case, Components
from tests.families.parts import DDIM, WORDS, image_vae
from tests.families.sdxl import unet


def tokenizer() -> ChatGLMTokenizer:
    """A SentencePiece model trained on a short list of words."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)]),
        model_writer=model,
        vocab_size=32,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file = Path(tempfile.mkdtemp()) / "tokenizer.model"  # which the tokenizer copies when it is saved
    atexit.register(shutil.rmtree, file.parent)
    file.write_bytes(model.getvalue())
    return ChatGLMTokenizer(str(file))


def text_encoder(vocabulary: int) -> ChatGLMModel:
    encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=vocabulary,
            hidden_size=16,
            ffn_hidden_size=32,
            kv_channels=8,
            num_attention_heads=2,
            multi_query_attention=True,
            multi_query_group_num=1,
            seq_length=256,
            add_qkv_bias=True,
            original_rope=True,
        )
    )
    with torch.no_grad():  # the class leaves its weights as the memory was
        for parameter in encoder.parameters():
            parameter.normal_(std=0.5)
    return encoder


def components() -> Components:
    words = tokenizer()
    return {
        "unet": unet(cross_attention_dim=8, encoder_hid_dim=16, encoder_hid_dim_type="text_proj"),
        "vae": image_vae(4, scaling_factor=0.13025),
        "scheduler": DDIMScheduler(**DDIM | {"num_train_timesteps": 1100, "beta_end": 0.014}),
        "text_encoder": text_encoder(words.vocab_size),
        "tokenizer": words,
    }


FACTS = (("force_zeros_for_empty_prompt", False),)
CASES = {"kolors": Case("kolors", "KolorsPipeline", components, latents=(4, 8, 12), facts=FACTS)}
