"""Two processes under `accelerate launch` (gloo) are one process with the same global batch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import metrics, run, train, write_config, write_data

# The launcher for several processes on one machine; the environment puts them on the CPU, where gloo connects them.
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
LAUNCH += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
WATCHED_RUN = ("-m", "tests.helpers.training.watched_run")


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    return run(*LAUNCH, *command, ACCELERATE_USE_CPU="true")


def launch_training(config: Path) -> subprocess.CompletedProcess[str]:
    return launch("-m", "simpletuner.cli", "train", "--config", str(config))


def last_checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Trained weights and projector, by name."""
    checkpoint = folder / f"checkpoint-{step}"
    state = load_file(checkpoint / "weights.safetensors")
    for part in sorted(checkpoint.glob("custom_checkpoint_*.pkl")):
        saved = torch.load(part, weights_only=True)
        if "projector" in saved:
            state |= {f"projector.{name}": value for name, value in saved["projector"].items()}
    return state


@pytest.fixture
def make_config(tmp_path: Path, tiny_folder: Callable[[str], Path], tiny_teacher: Path) -> Callable[..., Path]:
    def make(name: str, **options: Any) -> Path:
        data = tmp_path / "multidatabackend.json"
        return write_config(
            tmp_path,
            tiny_folder("sd3"),
            name=name,
            data=data if data.exists() else None,
            crepa_enabled=True,
            crepa_encoder=str(tiny_teacher),
            crepa_encoder_image_size=56,
            **options,
        )

    return make


def test_gradients_equal_those_of_one_process(make_config: Callable[..., Path], tmp_path: Path) -> None:
    """One unclipped SGD step of size 1 moves the weights by minus the gradient; the projector's too."""
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_train_steps": 1}
    options["gradient_accumulation_steps"] = 2
    one = train(make_config("one", train_batch_size=4, **options))
    assert one.returncode == 0, one.stderr
    two = launch_training(make_config("two", train_batch_size=2, **options))
    assert two.returncode == 0, two.stderr
    expected, got = last_checkpoint(tmp_path / "one", 1), last_checkpoint(tmp_path / "two", 1)
    assert expected.keys() == got.keys() and any(name.startswith("projector.") for name in got)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert metrics(tmp_path, "two")[0]["loss"] == pytest.approx(metrics(tmp_path, "one")[0]["loss"], abs=1e-6)


def test_both_ranks_cut_off_at_the_same_step_and_do_not_hang(make_config: Callable[..., Path], tmp_path: Path) -> None:
    """Mistakes 12 and 13: the ranks see different similarities, decide alike, and go on without the loss."""
    config = make_config(
        "watched",
        train_batch_size=1,
        max_train_steps=14,
        learning_rate=3e-2,
        crepa_similarity_threshold=0.1,
        crepa_similarity_ema_decay=0.5,
    )
    result = launch(*WATCHED_RUN, str(config))
    assert result.returncode == 0, result.stderr
    ranks = [json.loads((tmp_path / "watched" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert 2 < ranks[0][0] < 13
    rows = metrics(tmp_path, "watched")
    assert len(rows) == 14
    assert [row["step"] for row in rows if "crepa_loss" in row] == list(range(1, ranks[0][0]))


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_fsdp2_gives_ddps_losses(make_config: Callable[..., Path], tmp_path: Path, model_type: str) -> None:
    """Five steps of sd3 with REPA, the projector called outside of the sharded model's forward; a LoRA resumes too."""
    options: dict[str, Any] = {"max_train_steps": 5, "learning_rate": 1e-2, "model_type": model_type}
    ddp = launch_training(make_config("ddp", **options))
    assert ddp.returncode == 0, ddp.stderr
    config = make_config("fsdp", checkpoint_step_interval=3, **options)
    fsdp = launch(*WATCHED_RUN, str(config), "--fsdp2")
    assert fsdp.returncode == 0, fsdp.stderr
    for expected, got in zip(metrics(tmp_path, "ddp"), metrics(tmp_path, "fsdp"), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)
    if model_type == "full":
        return
    checkpoint = str(tmp_path / "fsdp" / "checkpoint-3")
    flags = ("--resume_from_checkpoint", checkpoint, "--output_dir", str(tmp_path / "again"))
    resumed = launch(*WATCHED_RUN, str(config), "--fsdp2", *flags)
    assert resumed.returncode == 0, resumed.stderr
    for expected, got in zip(metrics(tmp_path, "ddp")[3:], metrics(tmp_path, "again"), strict=True):
        assert got == pytest.approx(expected, abs=1e-5)


def test_an_own_ddp_loop_goes_on_when_the_loss_is_off(tmp_path: Path) -> None:
    """Mistake 13: with the projector inside the wrapped model, the reducer waits for its gradient at every step.

    And with `urepa_manifold_scope` sample, gradients averaged over the ranks are those of one process.
    """
    result = launch("-m", "tests.helpers.training.own_ddp_loop", str(tmp_path))
    assert result.returncode == 0, result.stderr
    one, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert one["permanent"] == other["permanent"] and one["recoverable"] == other["recoverable"]
    assert one["permanent"][0] == "on" and one["permanent"][-1] == "off"
    assert "measured" in one["recoverable"] and one["recoverable"][-1] == "on"
    assert one["gradient_error"] < 1e-5


def test_one_rank_draws_the_validation_samples_while_the_others_wait(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """A distributed wrapper called on one rank alone would wait for the others; DiT has buffers that it broadcasts."""
    options: dict[str, Any] = {
        "train_batch_size": 1,
        "model_family": "dit",
        "data": write_data(tmp_path, crop_aspect="square"),
        "validation_prompt": "picture 0",
        "validation_step_interval": 1,
        "validation_num_inference_steps": 2,
        "max_train_steps": 3,
    }
    result = launch_training(write_config(tmp_path, tiny_folder("dit"), **options))
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "run" / "validation").glob("*.png"))) == 3
