"""Arms of a comparison, small but real: the trainer, the teacher and the judge of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simpletuner.configuration import Config
from simpletuner.demo import REPA, run_demo
from simpletuner.evaluation.arms import Arm, precomputed_features, read_measures, run_arm, run_arms
from simpletuner.evaluation.datasets import LabelledImages, Splits, load_digits, split, write_class_folders
from simpletuner.evaluation.experiment import make_arm, prepare
from simpletuner.helpers.training.trainer import Trainer


@pytest.fixture(scope="module")
def splits() -> Splits:
    digits = load_digits()
    few = (digits.labels < 3).nonzero().flatten()[:90]
    data = LabelledImages(digits.images[few], digits.labels[few], digits.names[:3])
    return split(data, train=40, held_out=30, classifier=20)


@pytest.fixture(scope="module")
def folder(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("experiment")
    prepare(splits, root, classifier_epochs=1, plain_classifier=True)
    return root


def small_arm(folder: Path, splits: Splits, name: str, features: str = "own", **options: object) -> Arm:
    shared = {"max_train_steps": 2, "seed": 0, "report_to": "none", "train_batch_size": 4, "mixed_precision": "no"}
    measuring = {"measure_at": [1, 2], "samples": 8, "denoising": 2, "probe": True, "features": features}
    return make_arm(folder, name, splits, shared | options, **measuring)


def test_an_arm_trains_and_is_measured(folder: Path, splits: Splits) -> None:
    arm = small_arm(folder, splits, "aligned", **REPA)
    run_arm(arm)
    first, last = read_measures(arm)
    assert (first["step"], last["step"]) == (1, 2)
    for row in (first, last):
        assert row["frechet_distance"] > 0 and row["plain_distance"] > 0 and row["held_out_loss"] > 0
        assert -1 <= row["cknna"] <= 1 and 0 <= row["probe"] <= 1 and row["feature_seconds"] > 0
    assert last["seconds"] > first["seconds"]
    assert torch.load(arm.folder / "samples-2.pt", weights_only=True).shape == (8, 1, 28, 28)
    assert (arm.folder / "checkpoint-2").is_dir()


def test_without_classes_more_samples_than_images_can_be_drawn(folder: Path, splits: Splits) -> None:
    shared = {"max_train_steps": 1, "seed": 0, "report_to": "none", "train_batch_size": 4, "mixed_precision": "no"}
    arm = make_arm(folder, "unconditional", splits, shared, conditional=False, measure_at=[1], samples=40, denoising=1)
    run_arm(arm)
    assert len(read_measures(arm)) == 1


def test_the_control_gets_every_image_another_ones_features(folder: Path, splits: Splits) -> None:
    arm = small_arm(folder, splits, "control", features="other", **REPA)
    trainer = Trainer(Config(**arm.options), live=False)
    trainer.setup()
    assert trainer.foundation.alignment is not None
    teacher = trainer.foundation.alignment.teacher
    batch = {"sample_ids": [sample.id for sample in trainer.samples]}
    own, grid = precomputed_features(trainer, teacher, other=False)(batch)
    other, _ = precomputed_features(trainer, teacher, other=True)(batch)
    direct, _ = teacher.encode(trainer.samples[5].pixels()[None])
    torch.testing.assert_close(own[5], direct[0], atol=5e-3, rtol=5e-3)
    assert grid.tokens_per_frame == own.shape[2] == 49
    distances = torch.cdist(other.flatten(1), own.flatten(1))
    assert (distances.diagonal() > 1).all()  # never one's own
    assert sorted(distances.argmin(1).tolist()) == list(range(40))  # everyone's exactly once


def test_an_arm_that_fails_says_where_its_log_is(folder: Path, splits: Splits) -> None:
    arm = small_arm(folder, splits, "broken", pretrained_model_name_or_path=str(folder / "nothing"))
    with pytest.raises(RuntimeError, match=r"'broken' failed; its log is .*arm\.log"):
        run_arms([arm], at_once=1, on_progress=lambda running: None)
    assert "nothing" in (arm.folder / "arm.log").read_text()


def test_the_demo_on_a_folder_of_ones_own(splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = Splits(splits.train, splits.held_out, splits.classifier)
    images = torch.cat([part.images for part in (everything.train, everything.held_out, everything.classifier)])
    labels = torch.cat([part.labels for part in (everything.train, everything.held_out, everything.classifier)])
    own = write_class_folders(LabelledImages(images, labels, splits.train.names), tmp_path / "own")
    assert run_demo(tmp_path / "demo", own, steps=3, samples=6) == 0
    for name in ("curves.png", "samples.png", "report.md", "REPA/checkpoint-3", "without/checkpoint-3", "REPA/logs"):
        assert (tmp_path / "demo" / name).exists(), name
    shown = capsys.readouterr().out
    assert "Fréchet distance" in shown and "REPA" in shown
    report = (tmp_path / "demo" / "report.md").read_text()
    assert "| 3 |" in report


def test_the_demo_names_a_folder_that_holds_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path / "demo", tmp_path / "nothing") == 2
    assert "--dataset" in capsys.readouterr().err
