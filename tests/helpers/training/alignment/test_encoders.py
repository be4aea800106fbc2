"""Encoders by their names: what is said of them without loading them is what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.configuration.encoders import DINOV2, encoder_width
from simpletuner.helpers.training.alignment.encoders import (
    EncoderFacts,
    describe_encoder,
    load_encoder,
    width_of_encoder,
)
from simpletuner.helpers.training.alignment.teachers import make_teacher

SIZES = {"depth": 1, "embed_dim": 16, "num_heads": 2}
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """`folder("vit_small_patch14_dinov2", pretrained_cfg={...})`: a local encoder of random weights."""

    def make(architecture: str = "vit_small_patch14_dinov2", **facts: Any) -> Path:
        target = tmp_path / f"{architecture}-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        save_file(timm.create_model(architecture, num_classes=0, **SIZES).state_dict(), target / "model.safetensors")
        (target / "config.json").write_text(json.dumps({"architecture": architecture, "model_args": SIZES} | facts))
        return target

    return make


def agree(facts: EncoderFacts, name: str) -> bool:
    teacher = make_teacher(name)
    encoder = teacher.encoder
    loaded = (encoder.width, encoder.patch, encoder.native_size, encoder.mean, encoder.std, teacher.needs_statistics)
    said = (facts.width, facts.patch, facts.native_size, facts.mean, facts.std, facts.needs_statistics)
    return loaded == said


@pytest.mark.parametrize("architecture", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "test_vit"])
def test_local_encoders_are_what_is_said_of_them(folder: Folder, architecture: str) -> None:
    path = folder(architecture)
    facts = describe_encoder(str(path))
    assert agree(facts, str(path))
    assert (facts.architecture, facts.width) == (architecture, 16)
    assert facts.patch == (16 if architecture == "test_vit" else 14)
    assert describe_encoder(str(path / "model.safetensors")) == facts


def test_the_normalisation_that_a_config_states_counts(folder: Folder) -> None:
    stated = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "input_size": [3, 56, 56]}
    path = folder(pretrained_cfg=stated)
    facts = describe_encoder(str(path))
    assert (facts.mean, facts.std, facts.native_size) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 56)
    assert agree(facts, str(path))


@pytest.mark.parametrize("name", DINOV2)
def test_the_width_of_a_name_is_that_of_its_model(name: str) -> None:
    assert width_of_encoder(name) == encoder_width(name)


def test_a_width_needs_no_weights() -> None:
    assert width_of_encoder("timm/vit_tiny_patch16_224") == 192
    assert width_of_encoder("efficientnet_lite0") == 432
    with pytest.raises(ValueError, match="timm/none_such"):
        width_of_encoder("timm/none_such")


def test_efficientnet_lite0_is_what_is_said_of_it() -> None:
    facts = describe_encoder("efficientnet_lite0")
    assert agree(facts, "efficientnet_lite0")
    assert (facts.architecture, facts.width, facts.patch) == ("efficientnet_lite0", 432, 16)
    assert facts.needs_statistics
    assert len(facts.weights) == 16


def test_weights_are_known_by_their_hash(folder: Folder) -> None:
    path = folder()
    weights = path / "model.safetensors"
    facts = describe_encoder(str(path))
    assert facts.weights == sha256(weights.read_bytes()).hexdigest()[:16]
    state = load_file(weights)
    state["cls_token"][0, 0, 0] += 1
    save_file(state, weights)
    changed = describe_encoder(str(path))
    assert changed.weights == sha256(weights.read_bytes()).hexdigest()[:16] != facts.weights
    assert vars(changed) | {"weights": facts.weights} == vars(facts)


def test_a_copy_elsewhere_is_the_same_encoder(folder: Folder, tmp_path: Path) -> None:
    path = folder()
    facts = describe_encoder(str(path))
    path.rename(tmp_path / "moved")
    assert describe_encoder(str(tmp_path / "moved")) == facts


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation made and that takes memory."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.elements = max(self.elements, result.numel())
        return result


def test_nothing_is_loaded_to_describe_an_encoder(tmp_path: Path) -> None:
    """A giant one would take gigabytes. What its weights' file holds isn't even looked at, only hashed."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_dinov2"}))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors at all")
    with LargestTensor() as largest:
        facts = describe_encoder(str(tmp_path))
    assert (facts.width, facts.native_size) == (384, 518)
    assert facts.weights == sha256(b"no tensors at all").hexdigest()[:16]
    assert largest.elements < 1000
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_encoder(str(tmp_path))


# The hub

HUB_NAME, HUB_REPOSITORY = "timm/test_vit.r160_in1k", "models--timm--test_vit.r160_in1k"
DESCRIBE = """
import dataclasses, json, sys
from simpletuner.helpers.training.alignment.encoders import describe_encoder, load_encoder
facts, encoder = describe_encoder(sys.argv[1]), load_encoder(sys.argv[1])
loaded = [encoder.width, encoder.patch, encoder.native_size, encoder.mean, encoder.std]
print(json.dumps([dataclasses.asdict(facts), loaded, next(encoder.parameters()).sum().item()]))
"""


def test_encoders_of_the_hub_are_hashed_by_the_names_of_their_files(tmp_path: Path) -> None:
    """As the hub's own cache keeps them: snapshots link to blobs, and a large one is named by its SHA-256."""
    model = timm.create_model("test_vit")
    repository, revision = tmp_path / "hub" / HUB_REPOSITORY, "0" * 40
    for part in ("refs", "blobs", f"snapshots/{revision}"):
        (repository / part).mkdir(parents=True)
    save_file(model.state_dict(), repository / "weights")
    name = sha256((repository / "weights").read_bytes()).hexdigest()
    (repository / "weights").rename(repository / "blobs" / name)
    (repository / "snapshots" / revision / "model.safetensors").symlink_to(repository / "blobs" / name)
    (repository / "refs" / "main").write_text(revision)
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, HUB_NAME],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts, loaded, first = json.loads(done.stdout)
    assert facts["weights"] == name[:16]
    assert facts["architecture"] == HUB_NAME.removeprefix("timm/")
    assert [facts[key] for key in ("width", "patch", "native_size", "mean", "std")] == loaded
    assert loaded[:3] == [64, 16, 160]
    assert first == pytest.approx(next(model.parameters()).sum().item())  # these weights, and no others


def test_a_large_file_of_the_hub_is_not_read(folder: Folder) -> None:
    """Its name says what it holds; any other file's content is hashed."""
    path = folder()
    weights, blob = path / "model.safetensors", path / ("ab" * 32)
    weights.rename(blob)
    weights.symlink_to(blob)
    assert describe_encoder(str(path)).weights == "ab" * 8
    short = path / ("ab" * 20)  # as small files are named, by git's hash
    blob.rename(short)
    weights.unlink()
    weights.symlink_to(short)
    assert describe_encoder(str(path)).weights == sha256(short.read_bytes()).hexdigest()[:16]


# What can't be used


@pytest.mark.parametrize("use", [load_encoder, describe_encoder])
@pytest.mark.parametrize(
    "name",
    ["dinov2", "resnet18", "dinov2_vitx14", "dinov2_vitb14_foo", "timm/no_such_model", "folder-without-a-model"],
)
def test_an_encoder_that_cannot_be_loaded_is_named(
    use: Callable[[str], object], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder-without-a-model").mkdir()
    with pytest.raises(ValueError, match=name):
        use(name)


@pytest.mark.parametrize("use", [load_encoder, describe_encoder])
@pytest.mark.parametrize("architecture", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_what_has_no_patch_tokens_is_refused(use: Callable[[str], object], architecture: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    save_file(timm.create_model(architecture, num_classes=0).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{tmp_path}.*{architecture}.*choose a ViT"):
        use(str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architecture": "none_such"}'])
def test_a_broken_description_is_named(folder: Folder, content: str) -> None:
    path = folder()
    (path / "config.json").write_text(content)
    for use in (load_encoder, describe_encoder):
        with pytest.raises(ValueError, match=str(path)):
            use(str(path))


def test_a_broken_weights_file_is_named(folder: Folder) -> None:
    path = folder()
    os.truncate(path / "model.safetensors", 1000)
    with pytest.raises(ValueError, match=rf"{path}.*must fit the architecture"):
        load_encoder(str(path))


def test_a_local_copy_may_have_its_classifier(folder: Folder) -> None:
    """timm publishes supervised models with their heads, which a teacher has no use for."""
    path, pixels = folder(), torch.rand(1, 1, 3, 56, 56)
    plain, _ = make_teacher(str(path), image_size=56).encode(pixels)
    state = load_file(path / "model.safetensors")
    save_file(state | {"head.weight": torch.zeros(10, 16), "head.bias": torch.zeros(10)}, path / "model.safetensors")
    with_head, _ = make_teacher(str(path), image_size=56).encode(pixels)
    torch.testing.assert_close(with_head, plain)
