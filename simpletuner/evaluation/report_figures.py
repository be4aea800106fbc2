"""The figures of a report: training, similarity by block and by noise level, maps of tokens, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from simpletuner.configuration import Config
from simpletuner.evaluation import embeddings
from simpletuner.evaluation.examination import LEVELS, Common, Findings
from simpletuner.evaluation.plots import Curve, Panel, plot_curves, plot_points, plot_samples
from simpletuner.evaluation.similarity import MEASURES
from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics

MOST_CLASSES = 12  # told apart in maps by colour and marker
CURVE_POINTS = 60


def draw(
    output: Path,
    runs: Mapping[str, Config],
    findings: Mapping[str, Findings],
    common: Common,
    by_chance: Mapping[str, float],
) -> tuple[list[str], list[str]]:
    """Draws every figure that there are numbers for; returns the files' names, and notes on what is left out.

    Args:
        runs, findings: by name, in the order in which they are shown; findings may have more.
        by_chance: the value of each measure on shuffled images.
    """
    arms, figures, notes = list(findings), list[str](), list[str]()
    training = _training_panels(runs)
    if training:
        plot_curves(output / "training.png", training, arms=arms)
        figures.append("training.png")
    plot_curves(output / "blocks.png", _block_panels(findings, by_chance), arms=arms)
    plot_curves(output / "levels.png", _level_panels(findings, by_chance), arms=arms, columns=3)
    figures += ["blocks.png", "levels.png"]
    points, labels = _points(findings, common)
    plot_points(output / "tsne.png", {name: embeddings.tsne(rows) for name, rows in points.items()}, labels=labels)
    figures.append("tsne.png")
    if embeddings.has_umap():
        plot_points(output / "umap.png", {name: embeddings.umap(rows) for name, rows in points.items()}, labels=labels)
        figures.append("umap.png")
    else:
        notes.append("UMAP is left out: umap-learn isn't installed (`pip install 'simpletuner-repa[eval]'`).")
    images = {name: found.images for name, found in findings.items() if found.images is not None}
    if images:
        columns = [_shortened(prompt) for prompt in common.prompts]
        plot_samples(output / "samples.png", images, columns=columns, inches=1.1)
        figures.append("samples.png")
    return figures, notes


def _points(findings: Mapping[str, Findings], common: Common) -> tuple[dict[str, Tensor], list[str] | None]:
    """What the maps show, and each point's caption where there are few."""
    first = next(iter(findings.values()))
    points = {"teacher": first.teacher_points} | {run: found.points for run, found in findings.items()}
    captions = [common.samples[row].caption for row in first.owners]
    return points, captions if 1 < len(set(captions)) <= MOST_CLASSES else None


def _training_panels(runs: Mapping[str, Config]) -> list[Panel]:
    rows = {name: read_metrics(Path(config.output_dir) / METRICS_FILE) for name, config in runs.items()}
    titles = {
        "base_loss": "base loss",
        "urepa_similarity": "similarity in training (U-REPA)",
        "crepa_similarity": "similarity in training",
    }
    panels = []
    for measure, title in titles.items():
        curves = {name: _curve(found, measure) for name, found in rows.items()}
        panels.append(Panel(title, {name: curve for name, curve in curves.items() if curve is not None}))
    return [panel for panel in panels if panel.curves]


def _curve(rows: Sequence[Mapping[str, Any]], measure: str) -> Curve | None:
    """A measure of the training, averaged over stretches of steps."""
    known = [(row["step"], row[measure]) for row in rows if measure in row]
    if not known:
        return None
    rows_each = -(-len(known) // CURVE_POINTS)
    values = np.asarray(known, dtype=np.float64)
    means = np.stack([values[first : first + rows_each].mean(0) for first in range(0, len(values), rows_each)])
    return Curve(means[:, 0].tolist(), [means[:, 1].tolist()])


def _block_panels(findings: Mapping[str, Findings], by_chance: Mapping[str, float]) -> list[Panel]:
    names = list(next(iter(findings.values())).blocks["cknna"])
    return [
        Panel(
            f"{title} with the teacher",
            {
                run: Curve(range(len(names)), [[found.blocks[measure][name] for name in names]])
                for run, found in findings.items()
            },
            level=by_chance[measure],
            xlabel="block",
            ticks=[name.removeprefix("block_").replace("_", " ") for name in names],
        )
        for measure, title in MEASURES.items()
    ]


def _level_panels(findings: Mapping[str, Findings], by_chance: Mapping[str, float]) -> list[Panel]:
    panels = [
        Panel(
            f"{title} with the teacher",
            {run: Curve(LEVELS, [list(found.levels[measure].values())]) for run, found in findings.items()},
            level=by_chance[measure],
            xlabel="noise level",
        )
        for measure, title in MEASURES.items()
    ]
    cosines = {
        run: Curve(list(found.projected), [list(found.projected.values())])
        for run, found in findings.items()
        if found.projected
    }
    return [*panels, Panel("cosine of projected tokens", cosines, xlabel="noise level")]


def _shortened(prompt: str, length: int = 28) -> str:
    return prompt if len(prompt) <= length else f"{prompt[: length - 1]}…"
