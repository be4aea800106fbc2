"""Evaluating runs: as a command, and in the middle of a training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rich.console import Console

from simpletuner.cli import main
from simpletuner.evaluation.evaluate import evaluate, evaluate_run, table
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.training.trainer import Trainer
from tests.evaluation.class_runs import QUIET, class_data, class_run, config_of, trainer_of
from tests.evaluation.inception import write_inception
from tests.helpers.data.files import picture
from tests.helpers.training.test_distributed import WATCHED_RUN, launch
from tests.runs import metrics, write_config, write_data

TinyFolder = Callable[[str], Path]
MEASURES = ["frechet_distance", "kid", "precision", "recall"]


def trained(path: Path, *flags: str) -> Trainer:
    trainer = trainer_of(path, *flags)
    trainer.run()
    return trainer


@pytest.fixture
def options(tiny_teacher: Path) -> dict[str, Any]:
    """Of an evaluation in the features of a tiny encoder."""
    return {"evaluation_features": str(tiny_teacher), "max_train_steps": 4, "checkpoint_step_interval": 2}


def test_a_checkpoint_is_measured(tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any]) -> None:
    """Any of them, although later ones lie beside it, and the untrained model; the run's folder stays as it was."""
    config = class_run(tmp_path, tiny_folder("dit_pixels"), use_ema=True, **options)
    trained(config)
    there = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    found = {}
    for which, step in (("none", 0), ("2", 2), (str(tmp_path / "run" / "checkpoint-4"), 4), ("latest", 4)):
        AcceleratorState._reset_state(reset_partial_state=True)
        result = evaluate_run(config_of(config), which, live=False)
        folder = tmp_path / "run" / "evaluation" / f"step-{step:06d}"
        assert result == json.loads((folder / "metrics.json").read_text())
        assert result["step"] == step and result["samples"] == 10
        assert result["features"] == options["evaluation_features"]
        assert list(result["metrics"]) == MEASURES and all(map(math.isfinite, result["metrics"].values()))
        assert result["reference"] == {"source": "training data", "images": 9}
        assert "biased" in result["note"]
        (samples,) = folder.glob("samples-*")
        assert len(list(samples.glob("*.png"))) == 10
        found[which] = result["metrics"]
    assert found["latest"] == found[str(tmp_path / "run" / "checkpoint-4")] != found["2"] != found["none"]
    added = {path for path in (tmp_path / "run").rglob("*") if path.is_file()} - there
    assert {path.relative_to(tmp_path / "run").parts[0] for path in added} == {"evaluation"}
    assert len(list((tmp_path / "caches" / "evaluation").iterdir())) == 1, "the reference was measured once"


def test_with_inceptions_features_it_is_fid(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """Samples that are the reference's own images are at no distance from them."""
    weights = write_inception(tmp_path / "weights.pth")
    own = tmp_path / "own"
    own.mkdir()
    for number in range(5):
        picture(8, 8, number).save(own / f"{number}.png")
    changes = {"num_eval_images": 5, "evaluation_inception_weights": str(weights), "evaluation_reference": str(own)}
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels"), **changes))
    result = evaluate(trainer, QUIET)
    assert result is not None and result["features"] == "inception"
    assert list(result["metrics"]) == ["fid", "sfid", "inception_score", "kid", "precision", "recall"]
    assert result["metrics"]["fid"] > 0 and result["metrics"]["inception_score"] >= 1
    assert result["reference"] == {"source": str(own), "images": 5}
    (samples,) = (tmp_path / "run" / "evaluation" / "step-000000").glob("samples-*")
    for number in range(5):
        picture(8, 8, number).save(samples / f"{number:06d}.png")
    same = evaluate(trainer, QUIET)
    assert same is not None and same["metrics"]["fid"] == pytest.approx(0.0, abs=1e-3)
    assert same["metrics"]["sfid"] == pytest.approx(0.0, abs=1e-3)
    assert (same["metrics"]["precision"], same["metrics"]["recall"]) == (1.0, 1.0)


def test_training_goes_on_as_if_nothing_had_been_evaluated(
    tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any]
) -> None:
    """Bit for bit, with a model that has dropout in its path; the measures stand in the metrics."""
    plain = class_run(tmp_path, tiny_folder("dit"), name="plain", use_ema=True, resolution=64, **options)
    changes = {"resolution": 64, "eval_steps_interval": 3, "num_eval_images": 70, "evaluation_batch_size": 35}
    watched = class_run(tmp_path, tiny_folder("dit"), name="watched", use_ema=True, **options | changes)
    trainers = [trained(plain), trained(watched)]
    rows = metrics(tmp_path, "watched")
    evaluated = [row for row in rows if "loss" not in row]
    assert [row["step"] for row in evaluated] == [3, 4] == [3, max(row["step"] for row in rows)]
    assert list(evaluated[0]) == ["step", *(f"eval_{name}" for name in MEASURES)]
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 4]
    assert [row for row in rows if "loss" in row] == metrics(tmp_path, "plain")
    for one, other in zip(trainers[0].parameters, trainers[1].parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for step in (3, 4):
        folder = tmp_path / "watched" / "evaluation" / f"step-{step:06d}"
        assert json.loads((folder / "metrics.json").read_text())["samples"] == 70
        assert len(list(folder.glob("samples-*/*.png"))) == 64, "of many evaluations only some samples are kept"
    assert trainers[1].foundation.vae is None


def test_an_evaluation_gives_way_to_a_stop(tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any]) -> None:
    """The run that is asked to stop while it samples saves a checkpoint, and no measures."""
    changes = {"eval_steps_interval": 1, "checkpoint_step_interval": 0}
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels"), **options | changes))
    trainer.run(on_step=lambda trainer: trainer.request_stop())
    assert trainer.step < 4 and (tmp_path / "run" / f"checkpoint-{trainer.step}").is_dir()
    assert not list((tmp_path / "run").glob("evaluation/*/metrics.json"))


def test_a_measuring_gives_way_too(tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any]) -> None:
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels"), **options))
    answers = iter([False] * 3)  # for the batches of samples
    assert evaluate(trainer, QUIET, is_stopping=lambda: next(answers, True)) is None
    (folder,) = (tmp_path / "run" / "evaluation").iterdir()
    assert len(list(folder.glob("*/*.png"))) == 10 and not (folder / "metrics.json").exists()
    assert evaluate(trainer, QUIET) is not None


def test_what_can_not_be_evaluated_is_told_before_anything_is_cached(
    tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path
) -> None:
    data = write_data(tmp_path, kind="video")
    config = write_config(tmp_path, tiny_folder("wan"), data=data, evaluation_features=str(tiny_teacher))
    with pytest.raises(ValueError, match="model_family is wan, which makes clips"):
        evaluate_run(config_of(config), "none", live=False)
    with pytest.raises(ValueError, match="model_family is wan, which makes clips"):
        trainer_of(config, "--eval_steps_interval", "2")
    assert not (tmp_path / "caches").exists()


def test_ranks_that_share_a_model_share_the_sampling(
    tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any]
) -> None:
    """Three batches on two ranks, between steps of a sharded training: the odd one keeps both going."""
    changes = {"eval_steps_interval": 2, "num_eval_images": 7, "evaluation_batch_size": 3, "max_train_steps": 3}
    model = {"model_type": "full", "train_batch_size": 1, "evaluation_num_inference_steps": 2}
    config = write_config(tmp_path, tiny_folder("sd3"), data=class_data(tmp_path, side=64), **options | changes | model)
    ended = launch(*WATCHED_RUN, str(config), "--fsdp2")
    assert ended.returncode == 0, ended.stderr
    for step in (2, 3):
        folder = tmp_path / "run" / "evaluation" / f"step-{step:06d}"
        assert json.loads((folder / "metrics.json").read_text())["samples"] == 7
        assert len(list(folder.glob("samples-*/*.png"))) == 7
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 2, 3, 3]


def test_checkpoints_that_are_not_there_are_told(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    config = config_of(class_run(tmp_path, tiny_folder("dit_pixels")))
    with pytest.raises(ValueError, match="holds no checkpoint"):
        evaluate_run(config, "latest", live=False)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--evaluation_features timn/vit", 2, "'timn/vit' is no known encoder"),
        ("--evaluation_inception_weights {root}/none.pth", 2, "no such file or folder"),
        ("--evaluation_reference {root}/config.json", 2, "no such file or folder"),
        ("--evaluation_reference {root}/run.json", 2, "is no folder"),
        ("--evaluation_guidance 2 --evaluation_guidance_interval 0.7,0.2", 2, "no interval of noise levels"),
        ("--evaluation_guidance_interval 0.2,x", 2, "is not a list such as [0, 0.7]"),
        ("--num_eval_images 1", 2, "is not a whole number of at least 2"),
        ("--checkpoint 77", 2, "holds no checkpoint"),
    ],
)
def test_wrong_command_lines_are_told(
    tmp_path: Path,
    tiny_folder: TinyFolder,
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    flags: str,
    code: int,
    words: str,
) -> None:
    config = class_run(tmp_path, tiny_folder("dit_pixels"), **options)
    arguments = [part.format(root=tmp_path) for part in flags.split()]
    assert main(["evaluate", "--config", str(config), *arguments]) == code
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told


def test_the_command_prints_the_measures(
    tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = class_run(tmp_path, tiny_folder("dit_pixels"), **options)
    flags = ["--checkpoint", "none", "--evaluation_guidance", "2", "--evaluation_guidance_interval", "0,0.7"]
    assert main(["evaluate", "--config", str(config), *flags]) == 0
    printed = capsys.readouterr()
    assert "Fréchet distance" in printed.out and "FID" not in printed.out and "Precision" in printed.out
    written = tmp_path / "run" / "evaluation" / "step-000000" / "metrics.json"
    assert json.loads(written.read_text())["settings"]["guidance_interval"] == [0.0, 0.7]
    assert "step-000000" in printed.err.replace("\n", "")


def test_the_table_names_the_encoder() -> None:
    result = {"step": 5, "samples": 10, "features": "timm/some_vit", "metrics": {"frechet_distance": 1.5}}
    console = Console(width=120, record=True, file=None)
    with console.capture() as captured:
        console.print(table(result))
    assert "timm/some_vit" in captured.get() and "FID" not in captured.get()


def test_progress_of_an_evaluation_counts_what_is_there(
    tmp_path: Path, tiny_folder: TinyFolder, options: dict[str, Any]
) -> None:
    counted: dict[str, list[int]] = {}

    class Counting(CacheProgress):
        def task(self, description: str, total: int, unit: str = "records") -> Callable[[int], None]:
            counts = counted.setdefault(description, [total])
            return counts.append

    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels"), **options))
    for _ in range(2):
        evaluate(trainer, Counting(enabled=False))
    assert counted["Sampling"] == [10, 0, 4, 4, 2, 10]
    assert counted["Measuring the reference"] == [9, 9]
    assert counted["Measuring samples"] == [10, 10, 10]
