"""Whole runs in this process, with options that other tests leave at their defaults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.configuration import Config, load_config
from simpletuner.helpers.training.reporting import NonFiniteLossError
from simpletuner.helpers.training.trainer import Trainer, train
from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics
from tests.runs import write_config, write_data

TinyFolder = Callable[[str], Path]
pytestmark = pytest.mark.usefixtures("own_precision")
VALIDATION = {"validation_prompt": "picture 0", "validation_num_inference_steps": 2, "validation_step_interval": 2}


def config_of(path: Path) -> Config:
    config, problems = load_config(path, [])
    assert config is not None, problems
    return config


def test_a_unet_in_bf16_with_everything_on(tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path) -> None:
    """The default precision, checkpointing around the mid-block, min-SNR, EMA, and samples on the way."""
    options: dict[str, Any] = {
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "snr_gamma": 5.0,
        "use_ema": True,
        "urepa_enabled": True,
        "urepa_model": str(tiny_teacher),
        "urepa_encoder_image_size": 56,
        "aspect_bucket_alignment": 64,
    }
    trainer = train(config_of(write_config(tmp_path, tiny_folder("sd1x"), **options, **VALIDATION)), live=False)
    rows = read_metrics(tmp_path / "run" / METRICS_FILE)
    assert len(rows) == 4 and all("urepa_manifold_loss" in row and row["grad_norm"] > 0 for row in rows)
    assert len(list((tmp_path / "run" / "validation").glob("*.png"))) == 2
    assert trainer.foundation.vae is None, "the autoencoder that decoded the samples is still in memory"
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").is_file()


def test_clips_in_bf16_with_samples(tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path) -> None:
    options: dict[str, Any] = {
        "data": write_data(tmp_path, kind="video"),
        "mixed_precision": "bf16",
        "crepa_enabled": True,
        "crepa_encoder": str(tiny_teacher),
        "crepa_encoder_image_size": 56,
        "max_train_steps": 2,
    }
    train(config_of(write_config(tmp_path, tiny_folder("wan"), **options, **VALIDATION)), live=False)
    rows = read_metrics(tmp_path / "run" / METRICS_FILE)
    assert len(rows) == 2 and all(-1 <= row["crepa_similarity"] <= 1 for row in rows)
    (clip,) = (tmp_path / "run" / "validation").glob("*.mp4")
    assert clip.stat().st_size > 0


def aligned(tmp_path: Path, model: Path, teacher: Path, name: str, **options: Any) -> Trainer:
    """A run of REPA that is set up but not run."""
    options = {"crepa_enabled": True, "crepa_encoder": str(teacher), "crepa_encoder_image_size": 56} | options
    data = tmp_path / "multidatabackend.json"
    path = write_config(tmp_path, model, name=name, data=data if data.exists() else None, **options)
    trainer = Trainer(config_of(path), live=False)
    trainer.setup()
    return trainer


def test_cached_features_train_as_those_encoded_in_the_step(
    tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path
) -> None:
    """In fp32 bit for bit; in bf16 within its rounding. A batch of one, because sums depend on a batch's size."""
    losses = {}
    for name, options in {
        "step": {"crepa_feature_cache": False},
        "fp32": {"crepa_feature_cache_dtype": "fp32"},
        "bf16": {"crepa_feature_cache_dtype": "bf16"},
        "int8": {"crepa_feature_cache_dtype": "int8"},
    }.items():
        options |= {"train_batch_size": 1, "vae_batch_size": 1, "cache_dir": str(tmp_path / name / "cache")}
        trainer = aligned(tmp_path, tiny_folder("sd3"), tiny_teacher, name, max_train_steps=7, **options)
        trainer.run()
        rows = read_metrics(tmp_path / name / METRICS_FILE)
        losses[name] = [(row["loss"], row["crepa_similarity"], row["projector_grad_norm"]) for row in rows]
        assert trainer.foundation.alignment is not None
        has_teacher = trainer.foundation.alignment._teacher is not None
        assert has_teacher == (name == "step"), "with cached features no teacher is loaded for the training"
    assert losses["fp32"] == losses["step"]
    for name, tolerance in (("bf16", 2e-3), ("int8", 2e-2)):
        assert losses[name] != losses["step"]
        for row, exact in zip(losses[name], losses["step"], strict=True):
            assert row == pytest.approx(exact, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("cached", [True, False])
def test_nothing_is_held_once_the_loss_is_off_for_good(
    tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path, cached: bool
) -> None:
    """Mistake 11: no capture, no features or pixels read, no teacher, no optimizer state of the projector."""
    options: dict[str, Any] = {"crepa_feature_cache": cached, "crepa_cutoff_step": 2, "max_train_steps": 5}
    trainer = aligned(tmp_path, tiny_folder("sd3"), tiny_teacher, "run", **options)
    held: list[int] = []

    def on_step(trainer: Trainer) -> None:
        held.append(sum(parameter in trainer.optimizer.optimizer.state for parameter in trainer.projector_parameters))

    trainer.run(on_step)
    count = len(trainer.projector_parameters)
    assert held == [count, count, count, 0, 0]  # what step 2 found out holds from the next one on
    (batch,) = (next(batches) for batches in [trainer.batches()])
    assert not {"features", "pixels"} & set(batch)
    assert trainer.foundation.alignment is not None and trainer.foundation.alignment._teacher is None
    rows = read_metrics(tmp_path / "run" / METRICS_FILE)
    assert ["crepa_loss" in row for row in rows] == [True, True, False, False, False]
    resumed = aligned(
        tmp_path,
        tiny_folder("sd3"),
        tiny_teacher,
        "run",
        **options | {"max_train_steps": 6},
        resume_from_checkpoint="latest",
    )
    resumed.run()
    assert resumed.step == 6


def test_a_compiled_model_trains_alike_and_keeps_its_names(
    tmp_path: Path, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of the compiler but the last part, which would take minutes for a model of any size.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    options: dict[str, Any] = {"max_train_steps": 2, "layersync_enabled": True}
    options |= {"layersync_student_block": 0, "layersync_teacher_block": 1, "data": write_data(tmp_path)}
    for name, compiled in (("plain", False), ("compiled", True)):
        path = write_config(tmp_path, tiny_folder("sd3"), name=name, compile_model=compiled, **options)
        train(config_of(path), live=False)
    plain, compiled = (read_metrics(tmp_path / name / METRICS_FILE) for name in ("plain", "compiled"))
    for one, other in zip(plain, compiled, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["layersync_similarity"] == pytest.approx(one["layersync_similarity"], abs=1e-4)
    files = (tmp_path / name / "pytorch_lora_weights.safetensors" for name in ("plain", "compiled"))
    one, other = (load_file(file) for file in files)
    assert one.keys() == other.keys()


def test_options_of_the_resumed_run_count(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """The optimizer's state brings the weight decay with which it was saved along, the average its decay."""
    options: dict[str, Any] = {"use_ema": True, "checkpoint_step_interval": 2, "max_train_steps": 2}
    options["data"] = write_data(tmp_path)
    train(config_of(write_config(tmp_path, tiny_folder("sd3"), **options)), live=False)
    changed = {"adam_weight_decay": 0.125, "adam_beta1": 0.5, "ema_decay": 0.75, "resume_from_checkpoint": "latest"}
    trainer = Trainer(config_of(write_config(tmp_path, tiny_folder("sd3"), **options, **changed)), live=False)
    trainer.setup()
    assert trainer.step == 2
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.125}
    assert {group["betas"][0] for group in trainer.optimizer.param_groups} == {0.5}
    assert trainer.ema is not None and trainer.ema.decay == 0.75


def test_a_spoilt_projector_gradient_stops_the_run(tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path) -> None:
    """The loss is finite and so is the model's gradient, but the projector would be saved as NaN."""
    options: dict[str, Any] = {"crepa_enabled": True, "crepa_encoder": str(tiny_teacher)}
    options |= {"crepa_encoder_image_size": 56, "checkpoint_step_interval": 1, "max_grad_norm": 0.0}
    trainer = Trainer(config_of(write_config(tmp_path, tiny_folder("sd3"), **options)), live=False)
    trainer.setup()
    trainer.projector_parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteLossError, match="projector_grad_norm nan"):
        trainer.run()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


class NoReadBack(TorchDispatchMode):
    """Refuses to read a number from the device, as `.item()`, `float(tensor)` and `if tensor` do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a number was read from the device within the step")
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device_in_a_step(tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path) -> None:
    """Mistake 16: `.item()` several times a step."""
    options: dict[str, Any] = {"crepa_enabled": True, "crepa_encoder": str(tiny_teacher)}
    options |= {"crepa_encoder_image_size": 56, "crepa_similarity_threshold": 0.9, "crepa_plateau_stop": True}
    trainer = Trainer(config_of(write_config(tmp_path, tiny_folder("sd3"), **options)), live=False)
    trainer.setup()
    batches = trainer.batches()
    batch = next(batches)
    with NoReadBack():
        logs = trainer._forward_backward(batch, 0) | trainer._finish_gradients()
    batches.close()
    assert {"loss", "crepa_similarity", "grad_norm"} <= set(logs)
