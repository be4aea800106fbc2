"""Arms of a comparison, small but real: the trainer, the teacher and the judge of the demo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from simpletuner.configuration import Config
from simpletuner.demo import REPA, run_demo
from simpletuner.evaluation.arms import (
    MEASURES_FILE,
    PLAIN_CLASSIFIER_FILE,
    Arm,
    measuring_teacher,
    others_features,
    read_measures,
    run_arm,
    run_arms,
)
from simpletuner.evaluation.datasets import LabelledImages, Splits, load_digits, split, write_class_folders
from simpletuner.evaluation.experiment import make_arm, prepare
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.trainer import Trainer
from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics


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


def whole(splits: Splits) -> LabelledImages:
    parts = (splits.train, splits.held_out, splits.classifier)
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return LabelledImages(images, labels, splits.train.names)


def test_an_arm_trains_and_is_measured(folder: Path, splits: Splits) -> None:
    arm = small_arm(folder, splits, "aligned", **REPA)
    run_arm(arm)
    first, last = read_measures(arm)
    assert (first["step"], last["step"]) == (1, 2)
    for row in (first, last):
        assert row["frechet_distance"] > 0 and row["plain_distance"] > 0 and row["held_out_loss"] > 0
        assert -1 <= row["cknna"] <= 1 and 0 <= row["probe"] <= 1 and row["setup_seconds"] > 0
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
    cache = trainer.foundation.features
    assert cache is not None
    own = torch.stack([unpack(cache.record(sample).read()) for sample in trainer.samples])
    other, grid = others_features(trainer)({"sample_ids": [sample.id for sample in trainer.samples]})
    assert grid.tokens_per_frame == own.shape[2] == 49
    distances = torch.cdist(other.flatten(1), own.flatten(1))
    assert (distances.diagonal() > 1).all()  # never one's own
    assert sorted(distances.argmin(1).tolist()) == list(range(40))  # everyone's exactly once


def test_an_arm_that_fails_says_where_its_log_is(folder: Path, splits: Splits) -> None:
    arm = small_arm(folder, splits, "broken", pretrained_model_name_or_path=str(folder / "nothing"))
    with pytest.raises(RuntimeError, match=r"'broken' failed; its log is .*arm\.log: ") as failure:
        run_arms([arm], at_once=1, on_progress=lambda running: None)
    last = (arm.folder / "arm.log").read_text().strip().split("\n")[-1]
    assert "nothing" in last and str(failure.value).endswith(last)


def test_the_demo_on_a_folder_of_ones_own(splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_class_folders(whole(splits), tmp_path / "own")
    assert run_demo(tmp_path / "demo", own, steps=3, samples=6) == 0
    for name in ("curves.png", "samples.png", "report.md", "REPA/checkpoint-3", "without/checkpoint-3", "REPA/logs"):
        assert (tmp_path / "demo" / name).exists(), name
    shown = capsys.readouterr().out
    assert "Fréchet distance" in shown and "REPA" in shown
    report = (tmp_path / "demo" / "report.md").read_text()
    assert "| 3 |" in report


def test_an_arm_forgets_what_an_earlier_run_measured(folder: Path, splits: Splits) -> None:
    """Until its first step, the rows of the run before would be shown as its own."""
    arm = small_arm(folder, splits, "again", pretrained_model_name_or_path=str(folder / "nothing"))
    arm.folder.mkdir()
    for name in (MEASURES_FILE, METRICS_FILE):
        (arm.folder / name).write_text('{"step": 600}\n')
    with pytest.raises(ValueError, match="nothing"):
        run_arm(arm)
    assert read_measures(arm) == [] == read_metrics(arm.folder / METRICS_FILE)


def test_all_arms_are_measured_with_one_teacher(folder: Path, splits: Splits) -> None:
    """At another size, or with another encoder, the agreement would be with something else."""
    seen = []
    for name, options in {"bare": {}, "auto": REPA | {"crepa_encoder_image_size": 56}, "aligned too": REPA}.items():
        arm = small_arm(folder, splits, name, **options)
        trainer = Trainer(Config(**arm.options), live=False)
        trainer.setup()
        teacher = measuring_teacher(trainer, arm)
        seen.append(teacher.encode(splits.held_out.images[:4].expand(-1, 3, -1, -1))[0])
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[0], seen[2])


def test_a_second_comparison_leaves_no_image_of_the_first(splits: Splits, tmp_path: Path) -> None:
    """Images of the earlier run's training would be among those that the later one is measured with."""
    prepare(splits, tmp_path, classifier_epochs=1, plain_classifier=True)
    fewer = Splits(splits.held_out.select(torch.arange(20)), splits.train.select(torch.arange(9)), splits.classifier)
    prepare(fewer, tmp_path, classifier_epochs=1)
    data = tmp_path / "data"
    assert [len(list((data / part).rglob("*.png"))) for part in ("train", "held_out")] == [20, 9]
    assert not (data / PLAIN_CLASSIFIER_FILE).exists()


def test_foreign_data_is_not_removed(splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "data" / "train" / "own.png"
    own.parent.mkdir(parents=True)
    own.touch()
    assert run_demo(tmp_path) == 2
    assert f"error: --output: {tmp_path} holds data" in capsys.readouterr().err and own.exists()


def test_the_demo_names_what_it_cannot_use(
    splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(output: Path, dataset: Path | None, *words: str, code: int = 2) -> None:
        assert run_demo(output, dataset) == code
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and shown.count("\n") == 1
        assert all(word in shown for word in words), shown

    refuses(tmp_path / "demo", tmp_path / "nothing", "--dataset", "one folder a class")
    refuses(tmp_path / "demo", Path(__file__), "--dataset", "one folder a class")
    few = write_class_folders(splits.train.select(torch.arange(30)), tmp_path / "few")
    refuses(tmp_path / "demo", few, "--dataset", "11 are needed", "at least 44")
    (few / "zero" / "torn.png").write_bytes(b"\x89PNG")
    refuses(tmp_path / "demo", few, "--dataset", "torn.png", "mend or remove it")
    (tmp_path / "file").touch()
    refuses(tmp_path / "file", None, "--output", "file", "Name another")
    refuses(tmp_path / "file" / "below", None, "--output", "below", "Name another")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as where it is not installed
    refuses(tmp_path / "demo", None, "pip install 'simpletuner-repa[demo]'", code=1)


def test_the_demo_says_why_an_arm_failed(splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_class_folders(whole(splits), tmp_path / "own")
    (tmp_path / "demo" / "without").mkdir(parents=True)
    (tmp_path / "demo" / "without" / "logs").touch()  # where the tracker wants a folder
    assert run_demo(tmp_path / "demo", own, steps=3, samples=6) == 1
    shown = capsys.readouterr().err
    assert "error: The arm 'without' failed; its log is " in shown and "Error" in shown
