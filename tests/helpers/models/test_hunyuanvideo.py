"""HunyuanVideo's prompts."""

from __future__ import annotations

import torch

from tests.conftest import MakeFoundation


def test_prompts_are_read_with_llama_3s_own_tokenizer(make_foundation: MakeFoundation) -> None:
    """The class that the published model names loses spaces and pads on the left, into the instruction."""
    foundation = make_foundation("hunyuanvideo")
    tokenizer = foundation.load_text_encoders().tokenizer
    prompt = "a photo of a red cat"
    tokens = tokenizer(prompt, padding="max_length", max_length=30).tokens()
    assert tokens[: len(prompt)] == list(prompt.replace(" ", "Ġ"))
    spaced, joined, short = foundation.encode_prompts(["a cat", "acat", "a"])
    assert len(spaced["prompt_embeds"]) == len(joined["prompt_embeds"]) + 1 == len(short["prompt_embeds"]) + 4
    # A causal text encoder: what the prompts begin with alike is encoded alike, so nothing but the prompt is left.
    torch.testing.assert_close(spaced["prompt_embeds"][:1], short["prompt_embeds"][:1])
