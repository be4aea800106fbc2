"""What FLUX.2 does that no other family does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from simpletuner.configuration.family import with_local_facts
from simpletuner.helpers.models.registry import FAMILIES
from tests.conftest import MakeFoundation
from tests.families.batches import prepared
from tests.helpers.models.test_model_sampling import settings_of

BOTH = ["flux2", "flux2_klein"]


@pytest.mark.parametrize("name", BOTH)
def test_latents_are_patches_normalised_as_the_pipeline_normalises_images(
    name: str, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation(name)
    foundation.load_model()
    pixels = torch.rand(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = foundation.encode_pixels(pixels)
        theirs = foundation.sampling_pipeline()._encode_vae_image(pixels[:, 0] * 2 - 1, None)
    torch.testing.assert_close(ours, theirs)


def test_a_latent_is_sixteen_pixels_wide(tiny_folder: Callable[[str], Path]) -> None:
    assert with_local_facts(FAMILIES["flux2"], tiny_folder("flux2")).pixels_per_token == 16


@pytest.mark.parametrize("name", BOTH)
def test_every_block_has_adapters_on_both_ends_of_its_attention(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name, model_type="lora")
    model: Any = foundation.load_model()
    assert all(isinstance(block.attn.to_out[0], LoraLayer) for block in model.transformer_blocks)
    for block in model.single_transformer_blocks:
        assert isinstance(block.attn.to_qkv_mlp_proj, LoraLayer)
        assert isinstance(block.attn.to_out, LoraLayer)


def test_dev_is_trained_at_guidance_one_and_sampled_at_the_one_asked(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("flux2")
    told: list[list[float]] = []

    def note(model: Any, positional: Any, named: dict[str, Any]) -> None:
        told.append(named["guidance"].tolist())

    foundation.load_model().register_forward_pre_hook(note, with_kwargs=True)
    foundation.forward(prepared(foundation, "flux2"))
    text = foundation.encode_prompts(["cat"])
    foundation.generate(text, text[0], settings_of("flux2", guidance=3.0, steps=1))
    assert told == [[1.0, 1.0], [3.0]]
