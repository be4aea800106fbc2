"""Trained weights leave in a form that diffusers reads, without the projector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from simpletuner.helpers.models import lora
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.loading import load_weights
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import prepared

WITHOUT_LOADER = ["dit", "pixart"]


def alignment(name: str, teacher: Path) -> dict[str, Any]:
    """The alignment loss of the family, switched on."""
    prefix = CASES[name].prefix
    return {f"{prefix}_enabled": True, f"{prefix}_{'model' if prefix == 'urepa' else 'encoder'}": str(teacher)}


def trained_lora(name: str, make_foundation: MakeFoundation, teacher: Path) -> ModelFoundation:
    """A model with an alignment loss and an adapter that isn't zero; alpha differs from the rank."""
    options = alignment(name, teacher)
    foundation = make_foundation(name, model_type="lora", lora_rank=2, lora_alpha=3.0, **options)
    foundation.load_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in foundation.trainable_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return foundation


def predict(foundation: ModelFoundation, name: str, model: torch.nn.Module) -> torch.Tensor:
    """What another model predicts through the same foundation."""
    own, foundation.model = foundation.model, model.eval()
    try:
        with torch.no_grad():
            return foundation.forward(prepared(foundation, name))
    finally:
        foundation.model = own


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.name not in WITHOUT_LOADER])
def test_the_pipeline_loads_the_lora(
    name: str, make_foundation: MakeFoundation, tiny_folder: Callable[[str], Path], tiny_teacher: Path, tmp_path: Path
) -> None:
    """Mistake 14: projector weights in the exported LoRA."""
    foundation = trained_lora(name, make_foundation, tiny_teacher)
    file = foundation.save_lora(tmp_path)
    assert file.parent == tmp_path
    assert not [key for key in load_file(file) if "projector" in key]
    assert all(key.startswith(f"{foundation.family.model_subfolder}.") for key in load_file(file))

    pipeline_class = getattr(diffusers, CASES[name].pipeline)
    pipeline = pipeline_class.from_pretrained(tiny_folder(name), **foundation.PIPELINE_ARGUMENTS)
    loaded = getattr(pipeline, foundation.family.model_subfolder)
    before = predict(foundation, name, loaded)
    pipeline.load_lora_weights(tmp_path)
    after = predict(foundation, name, loaded)
    torch.testing.assert_close(after, predict(foundation, name, foundation.model), atol=1e-5, rtol=1e-4)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.name in WITHOUT_LOADER])
def test_a_class_without_a_loader_takes_the_lora_by_injection(
    name: str, make_foundation: MakeFoundation, tiny_teacher: Path, tmp_path: Path
) -> None:
    foundation = trained_lora(name, make_foundation, tiny_teacher)
    file = foundation.save_lora(tmp_path)
    plain = load_weights(foundation.MODEL_CLASS, foundation.source, "transformer", torch.float32)
    before = predict(foundation, name, plain)
    lora.load_lora(plain, file, "transformer")
    after = predict(foundation, name, plain)
    torch.testing.assert_close(after, predict(foundation, name, foundation.model))
    assert (after - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no adapter settings for 'unet'"):
        lora.load_lora(plain, file, "unet")


def test_averaged_weights_are_exported_in_place_of_the_models(
    make_foundation: MakeFoundation, tiny_teacher: Path, tmp_path: Path
) -> None:
    foundation = trained_lora("sd3", make_foundation, tiny_teacher)
    doubled = {name: 2 * value for name, value in foundation.unwrap_model().state_dict().items()}
    plain = load_file(foundation.save_lora(tmp_path / "plain"))
    averaged = load_file(foundation.save_lora(tmp_path / "averaged", doubled))
    assert plain.keys() == averaged.keys()
    for name, value in plain.items():
        torch.testing.assert_close(averaged[name], 2 * value)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_full_model_comes_back(
    name: str, averaged: bool, make_foundation: MakeFoundation, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Mistake 14: full-model resume failed on the projector's keys."""
    options = alignment(name, tiny_teacher)
    foundation = make_foundation(name, **options)
    model = foundation.load_model()
    weights = {key: value + 1.0 for key, value in model.state_dict().items()} if averaged else model.state_dict()
    folder = foundation.save_model(tmp_path, weights if averaged else None)
    assert folder == tmp_path / foundation.family.model_subfolder
    loaded, report = foundation.MODEL_CLASS.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, weights[key])
