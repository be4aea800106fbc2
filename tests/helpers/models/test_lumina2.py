"""What Lumina Image 2.0 does that no other family does."""

from __future__ import annotations

import torch

from tests.conftest import MakeFoundation


def test_the_empty_prompt_has_no_instructions_before_it(make_foundation: MakeFoundation) -> None:
    """As the pipeline encodes what it guides away from; a real prompt has the pipeline's instructions before it."""
    foundation = make_foundation("lumina2")
    pipeline = foundation.load_text_encoders()
    prompt, empty = (item["prompt_embeds"] for item in foundation.encode_prompts(["dog", ""]))
    with torch.no_grad():
        embeds, mask, negative, negative_mask = pipeline.encode_prompt("dog")
    torch.testing.assert_close(prompt, embeds[mask.bool()])
    torch.testing.assert_close(empty, negative[negative_mask.bool()])
    assert len(prompt) > len(pipeline.system_prompt) > len(empty) == 1
