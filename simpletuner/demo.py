"""`simpletuner demo`: the main job in a few minutes, a small DiT trained from scratch without and with REPA.

Both runs have the same seed, data order and steps; the second one also pulls block 1 toward the maps of an
EfficientNet-Lite0 trained on ImageNet. It reports what it measured, whichever way it comes out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from simpletuner.evaluation.arms import Arm, read_measures, run_arms
from simpletuner.evaluation.comparison import step_reaching
from simpletuner.evaluation.datasets import Splits, digits_splits, folder_splits
from simpletuner.evaluation.experiment import cores, make_arm, prepare
from simpletuner.evaluation.plots import Curve, Panel, plot_curves, plot_samples
from simpletuner.evaluation.samples import labels_like
from simpletuner.helpers.training.alignment.teachers import make_teacher
from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics

STEPS = 600
MEASURE_AT = [200, 300, 400, 500, 600]
BASELINE, ALIGNED = "without", "REPA"
OWN_IMAGES_SIZE = 32
FEWEST_HELD_OUT = 11  # CKNNA compares each with ten others
BAD_ARGUMENTS, FAILED = 2, 1
# Tuned on another seed than the one that is shown.
REPA: dict[str, Any] = {
    "crepa_enabled": True,
    "crepa_encoder": "efficientnet_lite0",
    "crepa_block_index": 1,
    "crepa_lambda": 0.5,
    "crepa_projector": "conv",
    "irepa_enabled": True,
    "irepa_spatial_norm_alpha": 0.8,
}


def run_demo(
    output: Path, dataset: Path | None = None, *, steps: int = STEPS, seed: int = 0, samples: int = 500
) -> int:
    """Runs the comparison and writes `curves.png`, `samples.png` and `report.md`.

    Returns the exit code: 2 where the data or the folder can't be used, 1 where the teacher is missing or a run failed.

    Args:
        output: folder for everything that is written.
        dataset: a folder of images by class; None takes scikit-learn's handwritten digits.
        steps: of each run; measured at five points from a third on.
        samples: drawn from each model at each measurement.
    """
    console, started = Console(), time.perf_counter()
    try:
        splits = digits_splits() if dataset is None else _own_splits(dataset)
    except (OSError, ValueError) as error:
        return _fail(f"--dataset: {error}", BAD_ARGUMENTS)
    try:
        make_teacher(REPA["crepa_encoder"])  # before minutes of work that need it
    except ValueError as error:
        return _fail(str(error), FAILED)
    what = "scikit-learn's handwritten digits" if dataset is None else str(dataset)
    console.print(f"{len(splits.train)} images of {what} to train on, {len(splits.held_out)} held out.")
    console.print("Training the classifier that will judge the samples, on images of its own …")
    try:
        accuracy = prepare(splits, output, classifier_epochs=40)
    except OSError as error:
        return _fail(f"--output: {str(output)!r} can't be written: {error.strerror}. Name another.", BAD_ARGUMENTS)
    except ValueError as error:
        return _fail(f"--output: {error}", BAD_ARGUMENTS)
    console.print(f"It names {accuracy:.1%} of the held-out images rightly.")
    arms = _arms(output, splits, steps, seed, samples)
    try:
        with _progress(console) as progress:
            tasks = {arm.name: progress.add_task(arm.name, total=steps, parts="") for arm in arms}
            run_arms(arms, at_once=min(len(arms), cores()), on_progress=lambda running: _show(progress, tasks, running))
            _show(progress, tasks, arms)
    except RuntimeError as error:
        return _fail(str(error), FAILED)
    rows = {arm.name: read_measures(arm) for arm in arms}
    console.print(_table(rows))
    summary = _summary(rows)
    console.print(summary, highlight=False)
    _write_figures(output, arms, rows, splits)
    minutes = (time.perf_counter() - started) / 60
    _write_report(output, arms, rows, what, accuracy, summary, minutes)
    console.print(f"{minutes:.1f} minutes. The report, the figures and both models are in {output}/.", highlight=False)
    return 0


def _fail(message: str, code: int) -> int:
    """Says what went wrong, and returns the exit code."""
    Console(stderr=True).print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
    return code


def _own_splits(folder: Path) -> Splits:
    """Splits of a folder of images by class; raises as `folder_splits`, and for too few images to measure with."""
    splits = folder_splits(folder, size=OWN_IMAGES_SIZE, channels=3)
    if len(splits.held_out) < FEWEST_HELD_OUT:
        raise ValueError(
            f"{folder}: a quarter of every class, together {len(splits.held_out)} images, is held out, and "
            f"{FEWEST_HELD_OUT} are needed to measure; add images, to at least {4 * FEWEST_HELD_OUT}"
        )
    return splits


def _arms(output: Path, splits: Splits, steps: int, seed: int, samples: int) -> list[Arm]:
    shared: dict[str, Any] = {"max_train_steps": steps, "seed": seed, "report_to": "tensorboard"}
    measuring: dict[str, Any] = {
        "measure_at": sorted({step * steps // STEPS for step in MEASURE_AT} - {0}),
        "tap": REPA["crepa_block_index"],
        "samples": samples,
        "threads": max(1, cores() // 2),
    }
    return [
        make_arm(output, BASELINE, splits, shared, **measuring),
        make_arm(output, ALIGNED, splits, shared | REPA, **measuring),
    ]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:8}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[parts]}"), console=console)


def _show(progress: Progress, tasks: dict[str, Any], arms: Sequence[Arm]) -> None:
    """Brings the bars of the arms to where their runs are."""
    for arm in arms:
        metrics = read_metrics(arm.folder / METRICS_FILE)
        if not metrics:
            continue
        last = metrics[-1]
        parts = [f"loss {last['base_loss']:.3f}"]
        if "crepa_similarity" in last:
            parts.append(f"similarity {last['crepa_similarity']:.3f}")
        measured = read_measures(arm)
        if measured:
            parts.append(f"distance {measured[-1]['frechet_distance']:.1f}")
        progress.update(tasks[arm.name], completed=last["step"], parts="  ".join(parts))


def _table(rows: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title="Fréchet distance of the samples (lower is better), and agreement with the teacher")
    for heading in ("step", "without", "REPA", "change", "CKNNA without", "CKNNA REPA"):
        table.add_column(heading, justify="right")
    for one, other in zip(rows[BASELINE], rows[ALIGNED], strict=True):
        table.add_row(*_cells(one, other))
    return table


def _cells(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """One line of the table: a measured step of both arms."""
    change = other["frechet_distance"] / one["frechet_distance"] - 1
    return [
        str(one["step"]),
        f"{one['frechet_distance']:.2f}",
        f"{other['frechet_distance']:.2f}",
        f"{change:+.0%}",
        f"{one['cknna']:.3f}",
        f"{other['cknna']:.3f}",
    ]


def _summary(rows: dict[str, list[dict[str, Any]]]) -> str:
    """What came out, in a sentence or two."""
    one, other = rows[BASELINE], rows[ALIGNED]
    level = one[-1]["frechet_distance"]
    reached = step_reaching([r["step"] for r in other], [r["frechet_distance"] for r in other], level)
    extra = other[-1]["seconds"] / one[-1]["seconds"] - 1
    cost = f"A step with REPA took {abs(extra):.0%} {'more' if extra >= 0 else 'less'} time, features made beforehand."
    if reached > one[-1]["step"]:
        return f"In this run REPA did not reach the distance with which training without it ended ({level:.2f}). {cost}"
    return (
        f"REPA reached the distance with which training without it ended ({level:.2f}) at step {reached:.0f} of "
        f"{one[-1]['step']}, {reached / one[-1]['step']:.0%} of the steps. {cost} This is one seed; "
        "benchmarks/convergence.py has several, and a control."
    )


def _write_figures(output: Path, arms: Sequence[Arm], rows: dict[str, list[dict[str, Any]]], splits: Splits) -> None:
    def curve(measure: str) -> dict[str, Curve]:
        return {name: Curve([r["step"] for r in r_], [[r[measure] for r in r_]]) for name, r_ in rows.items()}

    similarity = {}
    for arm in arms:
        metrics = [row for row in read_metrics(arm.folder / METRICS_FILE) if "crepa_similarity" in row]
        if metrics:
            steps = [row["step"] for row in metrics]
            similarity[arm.name] = Curve(steps, [[row["crepa_similarity"] for row in metrics]])
    distance = Panel("Fréchet distance of samples", curve("frechet_distance"), better="lower", log=True)
    panels = [
        distance,
        Panel("CKNNA with the teacher", curve("cknna"), better="higher"),
        Panel("similarity of student and teacher (training)", similarity, better="higher"),
        Panel("loss on held-out images", curve("held_out_loss"), better="lower"),
    ]
    plot_curves(output / "curves.png", panels, title="A small DiT from scratch, without and with REPA")
    names = sorted(splits.train.names)  # the order of the model's classes, which it knows by their folders
    # Every class thrice, or as often as the rarest was drawn: then each line of images has all of them in order.
    drawn = labels_like(splits.held_out.labels, arms[0].samples, len(names)).bincount(minlength=len(names))
    lines = min(3, int(drawn.min()))
    shown = max(1, lines) * len(names)
    samples = {
        f"{arm.name}, step {step}": torch.load(arm.folder / f"samples-{step}.pt", weights_only=True)[:shown]
        for step in (arms[0].measure_at[len(arms[0].measure_at) // 2], arms[0].measure_at[-1])
        for arm in arms
    }
    plot_samples(output / "samples.png", samples, columns=names if lines else None, title="Samples from the same noise")


def _write_report(
    output: Path,
    arms: Sequence[Arm],
    rows: dict[str, list[dict[str, Any]]],
    what: str,
    accuracy: float,
    summary: str,
    minutes: float,
) -> None:
    lines = "\n".join(
        "| " + " | ".join(_cells(one, other)) + " |" for one, other in zip(rows[BASELINE], rows[ALIGNED], strict=True)
    )
    options = arms[1].options
    (output / "report.md").write_text(
        f"""# A small DiT from scratch, without and with REPA

{summary}

| step | distance without | distance with REPA | change | CKNNA without | CKNNA with REPA |
|---:|---:|---:|---:|---:|---:|
{lines}

![Curves](curves.png)

![Samples](samples.png)

- Data: {what}. Seed {options["seed"]}, {options["max_train_steps"]} steps of {options["train_batch_size"]} images.
- The distance is the Fréchet distance of {arms[0].samples} samples to the held-out images, in the features of a
  classifier trained on images that neither run has seen (accuracy on the held-out images {accuracy:.1%}).
- REPA: block {options["crepa_block_index"]} is pulled toward {options["crepa_encoder"]} at
  {options["crepa_encoder_image_size"]} pixels, weight {options["crepa_lambda"]}, projector {options["crepa_projector"]}
  with iREPA's spatial normalisation ({options["irepa_spatial_norm_alpha"]}).
- The held-out loss proves nothing, and one seed little: `benchmarks/convergence.py` has three, and a control.
- Both configurations are in `{BASELINE}/arm.json` and `{ALIGNED}/arm.json`; the runs' logs open with
  `tensorboard --logdir {output}`.
- It took {minutes:.1f} minutes.
""",
        encoding="utf-8",
    )
