"""The arms of a comparison: real training runs that differ in a few options and are measured while they train.

`python -m simpletuner.evaluation.arms ARM.json` runs one arm, so that several run side by side, a process each, on the
CPU. The demo and `benchmarks/convergence.py` are made of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simpletuner.configuration import Config
from simpletuner.evaluation.classifier import load_classifier
from simpletuner.evaluation.datasets import read_class_folders
from simpletuner.evaluation.judge import Judge
from simpletuner.helpers.models.taps import Batch, FeatureSource
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.alignment.teachers import Teacher, make_teacher
from simpletuner.helpers.training.ema import averaged_weights
from simpletuner.helpers.training.trainer import Trainer
from simpletuner.helpers.utils.run_folder import METRICS_FILE

MEASURES_FILE = "measures.jsonl"
CLASSIFIER_FILE = "classifier.safetensors"
PLAIN_CLASSIFIER_FILE = "plain_classifier.safetensors"
SAMPLES_KEPT = 100
TEACHER = "efficientnet_lite0"  # whose features every arm is compared with
TEACHER_SCALE = 4  # it sees the images this much larger, so that its tokens lie on the student's grid
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Arm:
    """What to train and how to measure it; plain JSON.

    Attributes:
        name: of the arm in tables and figures.
        options: of the run's `Config`.
        data: folder with `train` and `held_out`, images by class, and the classifier.
        size, channels: of the images: their side in pixels, and 1 or 3.
        measure_at: after which steps to measure.
        features: whose features the teacher gives an image: its "own", or those of an "other" one: the control.
        tap, conditional, samples, denoising, probe: see `Judge`.
        threads: CPU threads of the process.
    """

    name: str
    options: dict[str, Any]
    data: str
    size: int
    measure_at: list[int]
    features: str = "own"
    tap: int = 1
    conditional: bool = True
    samples: int = 500
    denoising: int = 16
    probe: bool = False
    threads: int = 1
    channels: int = 1

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.options["output_dir"])


def run_arm(arm: Arm) -> None:
    """Trains and measures one arm; writes `measures.jsonl` and samples beside what the trainer writes."""
    torch.set_num_threads(arm.threads)
    _forget_earlier_run(arm)
    trainer, since = Trainer(Config(**arm.options), live=False), time.perf_counter()
    trainer.setup()
    setup_seconds = time.perf_counter() - since
    teacher, foundation = measuring_teacher(trainer, arm), trainer.foundation
    if foundation.alignment is not None and arm.features == "other":
        foundation.feature_source = others_features(trainer)
    train, held_out = (
        read_class_folders(Path(arm.data) / part, size=arm.size, channels=arm.channels)
        for part in ("train", "held_out")
    )
    plain = Path(arm.data) / PLAIN_CLASSIFIER_FILE
    judge = Judge(
        load_classifier(Path(arm.data) / CLASSIFIER_FILE),
        train,
        held_out,
        lambda images: _encode(teacher, images)[0].flatten(1, 2).mean(1),
        tap=arm.tap,
        conditional=arm.conditional,
        samples=arm.samples,
        denoising=arm.denoising,
        probe=arm.probe,
        plain_classifier=load_classifier(plain) if plain.is_file() else None,
    )
    trained, since = 0.0, time.perf_counter()

    def on_step(trainer: Trainer) -> None:
        nonlocal trained, since
        if trainer.step not in arm.measure_at:
            return
        trained += time.perf_counter() - since
        model = foundation.unwrap_model().eval()
        with averaged_weights(trainer.ema, trainer.parameters), trainer.accelerator.autocast():
            measures, samples = judge.measure(model, trainer.step, trained)
        model.train()
        torch.save(samples[:SAMPLES_KEPT].clone(), arm.folder / f"samples-{trainer.step}.pt")
        with (arm.folder / MEASURES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(measures) | {"setup_seconds": setup_seconds}) + "\n")
        since = time.perf_counter()

    trainer.run(on_step)


def measuring_teacher(trainer: Trainer, arm: Arm) -> Teacher:
    """The teacher that measures, the same for every arm."""
    teacher = make_teacher(TEACHER, image_size=arm.size * TEACHER_SCALE)
    teacher.standardise(trainer.statistics_batches())
    return teacher


def others_features(trainer: Trainer) -> FeatureSource:
    """A feature source that gives every training image the cached teacher features of another image.

    Which other one is fixed for the whole run: the next in one cycle through a random order of the images.
    """
    cache, samples = trainer.foundation.features, trainer.samples
    assert cache is not None
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    other = {samples[row].id: samples[after] for row, after in zip(order, order[1:] + order[:1], strict=True)}

    def source(prepared_batch: Batch) -> tuple[Tensor, TokenGrid]:
        chosen = [other[name] for name in prepared_batch["sample_ids"]]
        features = torch.stack([unpack(cache.record(sample).read()) for sample in chosen])
        return features, cache.grid(chosen[0])

    return source


def _encode(teacher: Teacher, images: Tensor) -> tuple[Tensor, TokenGrid]:
    """Teacher features `(n, 1, N, D)` of images `(n, 1 or 3, H, W)`, and their grid."""
    return teacher.encode(images.expand(-1, 3, -1, -1)[:, None])


def read_measures(arm: Arm) -> list[dict[str, Any]]:
    """What has been measured so far, a row a measured step."""
    path = arm.folder / MEASURES_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run_arms(arms: Sequence[Arm], *, at_once: int, on_progress: Callable[[Sequence[Arm]], None]) -> None:
    """Runs arms in processes of their own, `at_once` side by side; calls `on_progress` with those that are running.

    Raises:
        RuntimeError: an arm failed; says where its log is, and its last line.
    """
    waiting, running = iter(arms), dict[subprocess.Popen[bytes], Arm]()
    try:
        while True:
            for arm in _take(waiting, at_once - len(running)):
                running[_start(arm)] = arm
            if not running:
                return
            time.sleep(POLL_SECONDS)
            on_progress(list(running.values()))
            for process in [process for process in running if process.poll() is not None]:
                arm = running.pop(process)
                if process.returncode != 0:
                    log = arm.folder / "arm.log"
                    raise RuntimeError(f"The arm {arm.name!r} failed; its log is {log}: {_last_line(log)}")
    finally:
        for process in running:
            process.terminate()


def _take(arms: Iterator[Arm], count: int) -> list[Arm]:
    return [arm for _, arm in zip(range(count), arms, strict=False)]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it is empty")


def _forget_earlier_run(arm: Arm) -> None:
    """Removes what an earlier run into the same folder measured, which would pass for this one's."""
    for name in (MEASURES_FILE, METRICS_FILE):
        (arm.folder / name).unlink(missing_ok=True)


def _start(arm: Arm) -> subprocess.Popen[bytes]:
    arm.folder.mkdir(parents=True, exist_ok=True)
    _forget_earlier_run(arm)
    description = arm.folder / "arm.json"
    description.write_text(json.dumps(asdict(arm), indent=2), encoding="utf-8")
    with (arm.folder / "arm.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "simpletuner.evaluation.arms", str(description)],
            env=os.environ | {"OMP_NUM_THREADS": str(arm.threads), "ACCELERATE_USE_CPU": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


if __name__ == "__main__":
    run_arm(Arm(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
