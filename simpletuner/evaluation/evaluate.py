"""`simpletuner evaluate`: samples of a run's model, their distance to real images, and `metrics.json`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simpletuner.configuration import Config
from simpletuner.configuration.paths import local_path
from simpletuner.evaluation.distribution import Reference, compare
from simpletuner.evaluation.features import INCEPTION, Extractor, Progress, extract, make_extractor, reference_features
from simpletuner.evaluation.generate import (
    EvaluationStopped,
    generate_images,
    generation_settings,
    refuse_what_cannot_be_sampled,
)
from simpletuner.evaluation.pictures import (
    Picture,
    commonest_size,
    file_pictures,
    folder_pictures,
    training_pictures,
)
from simpletuner.evaluation.trained_runs import find_checkpoint
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.training.trainer import Trainer

UNTRAINED = "none"
FOLDER, METRICS_FILE = "evaluation", "metrics.json"
KEPT_IN_TRAINING = 64

HEADINGS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception score",
    "frechet_distance": "Fréchet distance",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
}


def evaluation_folder(output_dir: Path, step: int) -> Path:
    """Where the evaluation of a run after `step` optimizer steps lies."""
    return output_dir / FOLDER / f"step-{step:06d}"


def require_evaluation(trainer: Trainer) -> None:
    """Says what can't be evaluated as configured, before anything is cached; weights are found or downloaded.

    Raises:
        ValueError: names the option and the mend.
    """
    refuse_what_cannot_be_sampled(trainer)
    if trainer.config.evaluation_reference is not None:
        folder_pictures(local_path(trainer.config.evaluation_reference), (1, 1))
    with trainer.accelerator.main_process_first():
        if trainer.accelerator.is_main_process:
            with torch.random.fork_rng(devices=[]):
                _extractor(trainer, "cpu")


def evaluate(
    trainer: Trainer,
    progress: Progress,
    *,
    keep: int | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Measures a trainer's model as it is now, with the averaged weights if there are any; called on every rank.

    Samples and results lie in `evaluation_folder`. The model, its randomness and the optimizer are left as they were.

    Args:
        keep: how many of the samples stay on the disk; None keeps all.
        is_stopping: asked now and then whether to give up.

    Returns:
        What `metrics.json` holds, on the main process: `step`, `samples`, `features` (the encoder's name), `settings`,
        `reference`, `metrics` and `note`. None on others, and where it was given up.

    Raises:
        ValueError: the samples aren't finite, or the features or their reference can't be had.
    """
    config, accelerator = trainer.config, trainer.accelerator
    folder, settings = evaluation_folder(trainer.output_dir, trainer.step), generation_settings(config)
    try:
        files = generate_images(trainer, folder, settings, progress, is_stopping)
    except EvaluationStopped:
        return None
    result = None
    if accelerator.is_main_process:
        with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
            measured = _measure(trainer, files, _Patience(progress, is_stopping))
        if measured is not None:
            reference, metrics, note = measured
            result = {
                "step": trainer.step,
                "samples": len(files),
                "features": config.evaluation_features,
                "settings": asdict(settings),
                "reference": reference,
                "metrics": metrics,
                "note": note,
            }
            _write(folder / METRICS_FILE, result)
            for file in files[len(files) if keep is None else keep :]:
                file.unlink()
    gather_object([None])  # the others wait, as nobody but the main process measures
    return result


def evaluate_run(config: Config, checkpoint: str, *, live: bool = True) -> dict[str, Any] | None:
    """Evaluates a run at one of its checkpoints, as `simpletuner evaluate` does; see `evaluate`.

    Args:
        checkpoint: "latest", the number of a step, or a checkpoint's folder; "none" is the model before its training.
        live: whether the main process shows progress.

    Raises:
        ValueError: there is no such checkpoint, or the run can't be evaluated as configured.
    """
    folder = None if checkpoint == UNTRAINED else _checkpoint(config, checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        # A run in a folder of its own: it reads the checkpoint, and neither writes beside it nor minds later ones.
        changes = {"output_dir": scratch, "resume_from_checkpoint": folder, "report_to": "none", "compile_model": False}
        trainer = Trainer(config.model_copy(update=changes | {"eval_steps_interval": 0}), live=live)
        require_evaluation(trainer)
        trainer.setup()
        trainer.output_dir = Path(config.output_dir)
        with CacheProgress(enabled=live and trainer.accelerator.is_main_process) as progress:
            result = evaluate(trainer, progress)
        trainer.accelerator.end_training()
        return result


def _checkpoint(config: Config, wanted: str) -> str:
    is_folder = (local_path(wanted) / "manifest.json").is_file()
    return wanted if is_folder else str(find_checkpoint(config, wanted))


def reference_pictures(trainer: Trainer) -> list[Picture]:
    """The images that samples are compared with.

    Raises:
        ValueError: there are fewer than two.
    """
    folder = trainer.config.evaluation_reference
    if folder is not None:
        return folder_pictures(local_path(folder), commonest_size(trainer.samples))
    pictures = training_pictures(trainer.samples)
    if len(pictures) < 2:
        raise ValueError(
            "The training has a single image, and at least 2 are needed to compare samples with: name a folder in "
            "evaluation_reference."
        )
    return pictures


def table(result: dict[str, Any]) -> Group:
    """An evaluation's measures, to be printed."""
    encoder = "the Inception network" if result["features"] == INCEPTION else result["features"]
    heading = f"Step {result['step']}: {result['samples']} samples in the features of {encoder}"
    shown = Table(box=SIMPLE_HEAD)
    shown.add_column("Measure")
    shown.add_column("Value", justify="right")
    for name, value in result["metrics"].items():
        shown.add_row(HEADINGS[name], f"{value:.5g}")
    return Group(Text(heading, style="bold"), shown)


class _Stopping(Exception):
    """The measuring is to be given up."""


class _Patience:
    """A progress that asks at every step whether to give up."""

    def __init__(self, progress: Progress, is_stopping: Callable[[], bool]) -> None:
        self._progress, self._is_stopping = progress, is_stopping

    def task(self, description: str, total: int, unit: str) -> Callable[[int], None]:
        advance = self._progress.task(description, total, unit)

        def checked(count: int) -> None:
            if self._is_stopping():
                raise _Stopping
            advance(count)

        return checked


def _measure(
    trainer: Trainer, files: list[Path], progress: Progress
) -> tuple[dict[str, Any], dict[str, float], str | None] | None:
    """The reference in a few words, the metrics and a note; None where it is to be given up."""
    config = trainer.config
    try:
        extractor = _extractor(trainer, trainer.accelerator.device)
        reference: Reference = reference_features(
            reference_pictures(trainer),
            extractor,
            local_path(config.cache_dir) / FOLDER,
            progress,
            workers=config.max_workers,
        )
        samples = extract(file_pictures(files), extractor, progress, workers=config.max_workers)
    except _Stopping:
        return None
    metrics, note = compare(samples, reference)
    source = "training data" if config.evaluation_reference is None else config.evaluation_reference
    return {"source": source, "images": reference.gaussians["pool"].count}, metrics, note


def _extractor(trainer: Trainer, device: torch.device | str) -> Extractor:
    config = trainer.config
    return make_extractor(config.evaluation_features, config.evaluation_inception_weights, device)


def _write(file: Path, result: dict[str, Any]) -> None:
    """Wholly or not at all."""
    beside = file.with_suffix(".partial")
    with beside.open("w", encoding="utf-8") as content:
        content.write(json.dumps(result, indent=2) + "\n")
        content.flush()
        os.fsync(content.fileno())
    beside.replace(file)
