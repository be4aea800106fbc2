"""A run that is killed and resumed is the run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import ROOT, metrics, run, train, write_config

KILL_AT = 17
KILLED = f"""
import os, signal, sys
from pathlib import Path
from simpletuner.configuration import load_config
from simpletuner.helpers.training.trainer import Trainer

config, _ = load_config(Path(sys.argv[1]), [])
trainer = Trainer(config)
trainer.setup()
trainer.run(on_step=lambda t: t.step == {KILL_AT} and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Callable[[str], Path], tiny_teacher: Path) -> Path:
    """30 steps with everything that has a state: LoRA, EMA, accumulation, decay, and a similarity cutoff."""
    return write_config(
        tmp_path,
        tiny_folder("sd3"),
        max_train_steps=30,
        checkpoint_step_interval=5,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler="cosine",
        lr_warmup_steps=3,
        use_ema=True,
        ema_decay=0.9,
        caption_dropout_probability=0.3,
        crepa_enabled=True,
        crepa_encoder=str(tiny_teacher),
        crepa_encoder_image_size=56,
        crepa_scheduler="cosine",
        crepa_warmup_steps=2,
        crepa_similarity_threshold=0.25,
        crepa_similarity_ema_decay=0.8,
    )


def test_resumed_losses_are_bit_for_bit_those_of_an_uninterrupted_run(config: Path, tmp_path: Path) -> None:
    """Mistake 12: random states, sampler, EMA, coefficient, cutoff and projector all come back."""
    killed = run("-c", KILLED, str(config))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert max(row["step"] for row in metrics(tmp_path)) < KILL_AT
    resumed = train(config, "--resume_from_checkpoint", "latest")
    assert resumed.returncode == 0, resumed.stderr
    whole = train(config, "--output_dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr

    expected, got = metrics(tmp_path, "whole"), metrics(tmp_path)
    assert [row["step"] for row in got] == list(range(1, 31))
    assert got == expected
    # The state was worth saving: the loss had decayed, and the cutoff came between the kill and the end.
    assert "crepa_loss" in expected[KILL_AT] and "crepa_loss" not in expected[-1]
    exported = "pytorch_lora_weights.safetensors"
    one, other = (load_file(tmp_path / name / exported) for name in ("run", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_sigterm_saves_and_stops(config: Path, tmp_path: Path) -> None:
    """The step in flight is finished, a checkpoint written, and the run goes on from there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "simpletuner.cli", "train", "--config", str(config), "--max_train_steps", "400"],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("step"))
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert "Stopped after step" in errors and "--resume_from_checkpoint latest" in errors
    stopped = metrics(tmp_path)[-1]["step"]
    assert (tmp_path / "run" / f"checkpoint-{stopped}" / "manifest.json").is_file()


def test_the_newest_intact_checkpoint_is_taken(config: Path, tmp_path: Path) -> None:
    """A torn checkpoint and a half-written folder are passed over, with a warning that names the file."""
    assert train(config, "--max_train_steps", "11").returncode == 0
    torn = tmp_path / "run" / "checkpoint-11" / "optimizer.bin"
    torn.write_bytes(torn.read_bytes()[:100])
    (tmp_path / "run" / ".checkpoint-12.partial").mkdir()
    resumed = train(config, "--max_train_steps", "12", "--resume_from_checkpoint", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert "optimizer.bin is missing or torn" in resumed.stderr.replace("\n", " ")
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 13))
    torn = tmp_path / "run" / "checkpoint-12" / "weights.safetensors"
    torn.unlink()
    named = train(config, "--resume_from_checkpoint", str(torn.parent))
    assert named.returncode == 2
    assert "weights.safetensors is missing or torn" in named.stderr and "Traceback" not in named.stderr


def test_a_checkpoint_of_another_lora_is_refused(config: Path) -> None:
    first = train(config, "--max_train_steps", "6")
    assert first.returncode == 0, first.stderr
    other = train(config, "--lora_rank", "8", "--resume_from_checkpoint", "latest")
    assert other.returncode == 2
    assert "lora_rank" in other.stderr and "Traceback" not in other.stderr


def test_a_changed_option_that_shapes_the_state_is_refused_by_name(config: Path) -> None:
    first = train(config, "--max_train_steps", "6")
    assert first.returncode == 0, first.stderr
    for flags, words in (
        (["--optimizer", "sgd"], "optimizer was 'adamw' and is 'sgd'"),
        (["--crepa_projector", "mlp"], "crepa_projector was 'linear' and is 'mlp'"),
    ):
        other = train(config, *flags, "--resume_from_checkpoint", "latest")
        assert other.returncode == 2
        assert words in other.stderr and "Traceback" not in other.stderr


def test_a_changed_learning_rate_takes_effect(config: Path, tmp_path: Path) -> None:
    assert train(config, "--max_train_steps", "6", "--lr_scheduler", "constant_with_warmup").returncode == 0
    flags = ["--learning_rate", "0.004", "--max_train_steps", "8", "--lr_scheduler", "constant_with_warmup"]
    resumed = train(config, *flags, "--resume_from_checkpoint", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["learning_rate"] for row in metrics(tmp_path)[5:]] == pytest.approx([0.01, 0.004, 0.004])
