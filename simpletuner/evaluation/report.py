"""`simpletuner report`: did alignment help? Trained runs compared on the same images, in numbers, figures and words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.configuration import Config
from simpletuner.evaluation.examination import (
    LEVEL,
    Common,
    Findings,
    ReportSettings,
    common_ground,
    examine,
)
from simpletuner.evaluation.metrics import most_components
from simpletuner.evaluation.report_figures import draw
from simpletuner.evaluation.report_text import markdown, plain
from simpletuner.evaluation.similarity import JUDGED, MEASURES, NEIGHBOURS, chance, standard_errors
from simpletuner.evaluation.trained_runs import find_checkpoint, loaded_run
from simpletuner.evaluation.verdict import Difference, verdict

NUMBERS_FILE, TEXT_FILE = "report.json", "report.md"
BEFORE = "before training"
# What two runs must share to be compared; the precision because a process has only one.
SHARED = ("model_family", "pretrained_model_name_or_path", "resolution", "mixed_precision")
# What says nothing of how a run was trained.
UNTOLD = ("output_dir", "cache_dir", "resume_from_checkpoint", "report_to", "tracker_project_name", "tracker_run_name")
HIGHER_IS_BETTER = {"inception_score": True, "precision": True, "recall": True}
LOWER_IS_BETTER = ("fid", "sfid", "kid", "frechet_distance")


def write_report(
    baseline: Config, aligned: Sequence[Config], settings: ReportSettings, *, say: Callable[[str], None] = print
) -> Path:
    """Compares trained runs with a baseline and writes numbers, figures and text; returns `report.md`.

    Args:
        aligned: the first one's teacher and aligned block are those that all runs are compared with.
        say: is told what is being done, a line each.

    Raises:
        ValueError: a run isn't trained, or the runs can't be compared; names the option or the flag.
        DatasetError: the data can't be read.
    """
    runs = _named([baseline, *aligned])
    _require_comparable(runs)
    for config in runs.values():
        find_checkpoint(config, settings.checkpoint)  # before minutes of work
    base, *others = runs
    findings: dict[str, Findings] = {}
    common: Common | None = None
    for name in (*others, base):
        say(f"Looking at {name} …")
        common, findings[name] = _look(runs[name], settings.checkpoint, common, settings)
    assert common is not None
    say(f"Looking at the model as it was {BEFORE} …")
    _, before = _look(baseline, None, common, settings)
    findings = {BEFORE: before} | {name: findings[name] for name in runs}
    numbers = _numbers(runs, findings, common, settings)
    say("Drawing …")
    figures, notes = draw(settings.output, runs, findings, common, numbers["chance"])
    numbers |= {"figures": figures, "notes": numbers["notes"] + notes}
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / NUMBERS_FILE).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    path = settings.output / TEXT_FILE
    path.write_text(markdown(numbers), encoding="utf-8")
    return path


def _look(
    config: Config, checkpoint: str | None, common: Common | None, settings: ReportSettings
) -> tuple[Common, Findings]:
    """What is found of one run; its model is gone before the next one is loaded. The first decides what is common."""
    with loaded_run(config, checkpoint) as trainer:
        if common is None:
            common = common_ground(trainer, settings)
        return common, examine(trainer, common, settings, with_samples=checkpoint is not None)


def _named(configs: Sequence[Config]) -> dict[str, Config]:
    """Runs by the name of their folder."""
    runs: dict[str, Config] = {}
    for config in configs:
        name = Path(config.output_dir).resolve().name
        if name in runs or name == BEFORE:
            raise ValueError(
                f"output_dir: two runs are called {name!r} by their folders ({config.output_dir}). Runs are told apart "
                "by the folder's name: name each run once, and rename one of two equal folders."
            )
        runs[name] = config
    return runs


def _require_comparable(runs: Mapping[str, Config]) -> None:
    (base, first), *others = runs.items()
    for name, config in others:
        for option in SHARED:
            one, other = getattr(first, option), getattr(config, option)
            if one != other:
                raise ValueError(
                    f"{option} is {one!r} in {base} and {other!r} in {name}. Only runs that share {', '.join(SHARED)} "
                    "and the data can be compared."
                )


# Numbers


def _numbers(
    runs: Mapping[str, Config], findings: Mapping[str, Findings], common: Common, settings: ReportSettings
) -> dict[str, Any]:
    """The content of `report.json`."""
    base, *others = runs
    options = _differing(runs)
    notes: list[str] = []
    entries: dict[str, dict[str, Any]] = {}
    for name, found in findings.items():
        entries[name] = {
            "step": found.step,
            "options": options.get(name),
            "blocks": found.blocks,
            "levels": _by_text(found.levels),
            "projected_cosine": {f"{level:g}": value for level, value in found.projected.items()},
            "evaluation": _evaluation(runs[name], found.step) if name in runs else None,
        }
    verdicts = {}
    for name in others:
        errors = standard_errors(findings[base].features, findings[name].features, common.teacher_rows)
        entries[name]["errors"] = errors
        features = [
            Difference(
                MEASURES[measure],
                findings[base].blocks[measure][common.block],
                findings[name].blocks[measure][common.block],
                error=errors[measure],
            )
            for measure in JUDGED
        ]
        samples, note = compare_evaluations(entries[base]["evaluation"], entries[name]["evaluation"])
        if note is not None:
            notes.append(f"Evaluations of {base} and {name} {note}, and aren't compared.")
        if findings[name].step != findings[base].step:
            notes.append(f"{name} is at step {findings[name].step} and {base} at step {findings[base].step}.")
        verdicts[name] = verdict(name, base, plain(common.block), features, samples)
    return {
        "notice": settings.notice,
        "verdicts": verdicts,
        "baseline": base,
        "block": common.block,
        "settings": {
            "images": len(common.samples),
            "teacher": common.teacher.name,
            "level": LEVEL,
            "neighbours": min(NEIGHBOURS, len(common.samples) - 1),
            "components": most_components(len(common.samples)),
            "seed": settings.seed,
            "prompts": common.prompts,
            "sample_steps": settings.sample_steps,
            "guidance": settings.guidance,
        },
        "chance": chance(findings[base].features, common.teacher_rows),
        "runs": entries,
        "notes": notes,
    }


def _by_text(levels: Mapping[str, Mapping[float, float]]) -> dict[str, dict[str, float]]:
    return {measure: {f"{level:g}": value for level, value in found.items()} for measure, found in levels.items()}


def _differing(runs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """The options that the runs don't share, by run."""
    names = [
        name
        for name in Config.model_fields
        if name not in UNTOLD
        and any(getattr(config, name) != getattr(runs[next(iter(runs))], name) for config in runs.values())
    ]
    return {run: {name: getattr(config, name) for name in names} for run, config in runs.items()}


def _evaluation(config: Config, step: int) -> dict[str, Any] | None:
    """What `simpletuner evaluate` found of a checkpoint."""
    path = Path(config.output_dir) / "evaluation" / f"step-{step:06d}" / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def compare_evaluations(
    baseline: Mapping[str, Any] | None, aligned: Mapping[str, Any] | None
) -> tuple[list[Difference], str | None]:
    """What two evaluations (contents of `metrics.json`) say of samples, or nothing and why they can't be compared."""
    if baseline is None or aligned is None:
        return [], None
    for name in ("features", "samples", "step"):
        if baseline[name] != aligned[name]:
            return [], f"differ in {name} ({baseline[name]} and {aligned[name]})"
    one, other = baseline["metrics"], aligned["metrics"]
    directions = dict.fromkeys(LOWER_IS_BETTER, False) | HIGHER_IS_BETTER
    return [
        Difference(name, one[name], other[name], higher_is_better=higher)
        for name, higher in directions.items()
        if name in one and name in other
    ], None
