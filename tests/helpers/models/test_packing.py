"""Packed latents: those of the pipelines; and what the families that pack them do besides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import ChromaPipeline, FluxPipeline, QwenImagePipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.configuration import Config
from simpletuner.helpers.models.chroma import ChromaFoundation
from simpletuner.helpers.models.packing import image_ids, pack, unpack
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import prepared
from tests.helpers.models.test_model_sampling import settings_of

RATIO = 8
PACKED = [name for name, case in CASES.items() if case.name in ("flux", "chroma", "qwen_image")]


@pytest.mark.parametrize("pipeline", [FluxPipeline, ChromaPipeline, QwenImagePipeline])
@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 4), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_packing_is_the_pipelines(pipeline: Any, channels: int, rows: int, columns: int) -> None:
    """Mistake 5: a token's place and its channels' order are those that the model was trained with."""
    latents = torch.randn(2, channels, 2 * rows, 2 * columns)
    tokens = pack(latents)
    assert torch.equal(tokens, pipeline._pack_latents(latents, 2, channels, 2 * rows, 2 * columns))
    sides = 2 * RATIO * rows, 2 * RATIO * columns
    theirs = pipeline._unpack_latents(tokens, *sides, RATIO)
    assert torch.equal(unpack(tokens, rows, columns), theirs.reshape(latents.shape))
    assert torch.equal(unpack(tokens, rows, columns), latents)


@pytest.mark.parametrize("pipeline", [FluxPipeline, ChromaPipeline])
def test_ids_are_the_pipelines(pipeline: Any) -> None:
    theirs = pipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(TokenGrid(1, 3, 5), torch.device("cpu")), theirs)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        *((name, "model_index.json", {"_class_name": "FluxFillPipeline"}, "for FluxFillPipeline") for name in PACKED),
        ("qwen_image", "transformer/config.json", {"guidance_embeds": True}, "guidance_embeds, which diffusers' class"),
    ],
)
def test_a_variant_that_needs_more_than_a_prompt_is_refused(
    name: str, file: str, change: dict[str, Any], message: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder(name), tmp_path / "model"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    family = CASES[name].name
    config = Config(model_family=family, pretrained_model_name_or_path=str(folder), mixed_precision="no")
    with pytest.raises(ValueError, match=f"pretrained_model_name_or_path is .*{message}"):
        foundation_class(family)(config, Accelerator(cpu=True)).load_model()


@pytest.mark.parametrize(("name", "trained", "sampled"), [("flux", 1.0, 3.0), ("flux_schnell", None, None)])
def test_a_distilled_flux_is_trained_at_guidance_one_and_sampled_at_the_one_asked(
    name: str, trained: float | None, sampled: float | None, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation(name)
    told: list[torch.Tensor | None] = []

    def note(model: Any, positional: Any, named: dict[str, Any]) -> None:
        told.append(named["guidance"])

    foundation.load_model().register_forward_pre_hook(note, with_kwargs=True)
    foundation.forward(prepared(foundation, name))
    text = foundation.encode_prompts(["cat"])
    foundation.generate(text, foundation.encode_prompts([""])[0], settings_of(name, guidance=3.0, steps=1))
    assert [None if guidance is None else set(guidance.tolist()) for guidance in told[:2]] == [
        None if scale is None else {scale} for scale in (trained, sampled)
    ]
    assert len(told) == (2 if name == "flux" else 3)  # an undistilled one predicts twice


def test_checkpointing_keeps_chromas_mask(make_foundation: MakeFoundation) -> None:
    """diffusers gives the mask to the single blocks only when it doesn't checkpoint them."""
    foundation = make_foundation("chroma", gradient_checkpointing=True)
    assert isinstance(foundation, ChromaFoundation)
    foundation.load_model()
    batch = prepared(foundation, "chroma")
    assert not batch["text"]["prompt_attention_mask"].all()
    with torch.no_grad():
        expected = foundation.forward(batch)  # nothing is checkpointed where nothing is learnt
    torch.testing.assert_close(foundation.forward(batch).detach(), expected)
