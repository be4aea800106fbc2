"""PixArt-α beside PixArt-Σ."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline

from tests.conftest import MakeFoundation
from tests.families.batches import prepared


@pytest.mark.parametrize(
    ("name", "pipeline", "tokens"), [("pixart", PixArtSigmaPipeline, 300), ("pixart_alpha", PixArtAlphaPipeline, 120)]
)
def test_the_folder_says_which_pixart_it_is(
    name: str, pipeline: type, tokens: int, make_foundation: MakeFoundation
) -> None:
    """Each samples through its own pipeline, and cuts captions to the length that it was trained with."""
    foundation = make_foundation(name)
    foundation.load_model()
    assert type(foundation.sampling_pipeline()) is pipeline
    (text,) = foundation.encode_prompts(["cat " * 400])
    assert text["prompt_embeds"].shape[0] == tokens


def test_pixart_alpha_is_told_the_size_of_the_image(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("pixart_alpha")
    conditions: list[dict[str, torch.Tensor]] = []

    def note(model: Any, positional: Any, named: dict[str, Any]) -> None:
        conditions.append(named["added_cond_kwargs"])

    foundation.load_model().register_forward_pre_hook(note, with_kwargs=True)
    foundation.forward(prepared(foundation, "pixart_alpha"))
    assert conditions[0]["resolution"].tolist() == [[64, 96]] * 2
    torch.testing.assert_close(conditions[0]["aspect_ratio"], torch.full((2, 1), 64 / 96))


def test_the_tiny_autoencoder_is_not_for_pixart_alpha(make_foundation: MakeFoundation) -> None:
    with pytest.raises(ValueError, match="crepa_use_tae is true, but"):
        make_foundation("pixart_alpha").load_tiny_autoencoder()


@pytest.mark.parametrize("name", ["sana", "sanavideo"])
def test_a_prompt_follows_sanas_instruction_and_an_empty_one_does_not(
    name: str, make_foundation: MakeFoundation
) -> None:
    """As the pipelines encode what a user of the trained model writes, and what they guide away from."""
    foundation = make_foundation(name)
    dog, empty = (item["prompt_embeds"] for item in foundation.encode_prompts(["dog", ""]))
    pipeline = foundation.load_text_encoders()
    default = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    assert default
    for embeds, prompt, instruction in ((dog, "dog", default), (empty, "", None)):
        expected, mask, _, _ = pipeline.encode_prompt(
            [prompt], do_classifier_free_guidance=False, complex_human_instruction=instruction
        )
        torch.testing.assert_close(embeds, expected[0][mask[0].bool()])
    plain, mask, _, _ = pipeline.encode_prompt(["dog"], do_classifier_free_guidance=False)
    assert plain[0][mask[0].bool()].shape != dog.shape
