"""HiDream's experts, its fourth text encoder, and the largest images that it takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import HiDreamImageTransformer2DModel
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU

from simpletuner.configuration import Config
from simpletuner.helpers.models import hidream
from simpletuner.helpers.models.hidream import HidreamFoundation
from tests.conftest import MakeFoundation
from tests.families.batches import prepared


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_folder("hidream"), tmp_path / "hidream"))


def foundation_of(folder: Path) -> HidreamFoundation:
    config = Config(
        model_family="hidream",
        pretrained_model_name_or_path=str(folder),
        model_type="full",
        mixed_precision="no",
    )
    return HidreamFoundation(config, Accelerator(cpu=True))


@pytest.mark.parametrize("forced", [False, True])
def test_training_predicts_what_evaluation_does_and_reaches_every_expert(forced: bool, folder: Path) -> None:
    """`force_inference_output`, which diffusers has for training, runs the experts without gradients."""
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_inference_output": forced}))
    foundation = foundation_of(folder)
    model = foundation.load_model()
    batch = prepared(foundation, "hidream")
    trained = foundation.forward(batch)
    trained.square().sum().backward()
    experts = [module for module in model.modules() if isinstance(module, MOEFeedForwardSwiGLU)]
    assert len(experts) == 4
    for layer in experts:
        for part in (layer.experts, layer.gate):
            assert all(p.grad is not None and p.grad.any() for p in part.parameters())
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(foundation.forward(batch), trained, atol=1e-5, rtol=1e-4)


def test_the_published_llama_takes_the_place_of_one_that_is_not_there(
    folder: Path, tmp_path: Path, make_foundation: MakeFoundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HiDream's own repositories lack it, and their `model_index.json` doesn't name it."""
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.move(folder / part, tmp_path / part)
    shutil.copytree(tmp_path / "text_encoder_4", tmp_path / "llama")
    shutil.copytree(tmp_path / "tokenizer_4", tmp_path / "llama", dirs_exist_ok=True)
    index = folder / "model_index.json"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({key: value for key, value in facts.items() if not key.endswith("_4")}))
    monkeypatch.setattr(hidream, "LLAMA", str(tmp_path / "llama"))
    (own,), (published,) = (
        foundation.encode_prompts(["dog"]) for foundation in (make_foundation("hidream"), foundation_of(folder))
    )
    torch.testing.assert_close(published, own)
    foundation = foundation_of(folder)
    foundation.load_model()
    assert foundation.sampling_pipeline().text_encoder_4 is None

    monkeypatch.setattr(hidream, "LLAMA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"fourth text encoder could not be read from .*nowhere.*text_encoder_4/"):
        foundation_of(folder).load_text_encoders()


def test_an_image_that_is_not_square_has_a_largest_size(make_foundation: MakeFoundation) -> None:
    """The model pads it to the tokens of its largest square, here 12 × 12 latents."""
    foundation = make_foundation("hidream")
    with torch.no_grad():
        assert foundation.encode_pixels(torch.rand(1, 1, 3, 64, 144)).shape == (1, 4, 8, 18)
        assert foundation.encode_pixels(torch.rand(1, 1, 3, 112, 112)).shape == (1, 4, 14, 14)
    with pytest.raises(ValueError, match=r"160×64 pixels are 40 tokens, but .* at most 36 .* Lower resolution"):
        foundation.encode_pixels(torch.rand(1, 1, 3, 64, 160))


def test_tokens_are_not_picked_out_of_what_somebody_else_padded(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("hidream")
    assert isinstance(foundation.load_model(), HiDreamImageTransformer2DModel)
    call = hidream.ForwardCall({"patch_size": 2}, {"hidden_states_masks": torch.ones(1, 36)})
    with pytest.raises(ValueError, match="on latents"):
        foundation.select_tokens(torch.zeros(1, 36, 16), 0, call)
