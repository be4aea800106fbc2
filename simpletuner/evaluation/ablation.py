"""`simpletuner ablate`: a declared set of runs that differ in a few options, trained, evaluated and compared.

Each run is trained and evaluated by the commands that a user would type, in processes of their own: a run that breaks
takes none of the others with it, and one that was begun is resumed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simpletuner.configuration import Config, check_config_file, has_errors
from simpletuner.configuration.fields import describe_all
from simpletuner.configuration.json_files import read_object
from simpletuner.configuration.loading import plain_names, read_json_object
from simpletuner.configuration.paths import local_path
from simpletuner.configuration.problems import Problem
from simpletuner.evaluation.plots import plot_bars
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.helpers.training.signals import stop_on_signals
from simpletuner.helpers.utils.run_folder import METRICS_FILE, find_checkpoints, read_metrics

CONFIG_FILE, TABLE, NUMBERS, FIGURE = "config.json", "ablation.md", "ablation.json", "ablation.png"
INTERRUPTED = 130
TRAINING_MEASURES = ("base_loss", "urepa_similarity", "crepa_similarity")
LAST_ROWS = 50  # of the training's rows, over which its measures are averaged


class Ablation(BaseModel):
    """The file of an ablation.

    Attributes:
        base: the configuration that all runs start from.
        output_dir: each run gets a folder in it, with its configuration; the table and the figure lie beside them.
        runs: by name, the options in which a run differs from the base.
        seeds: every run is made with each of them; None takes the base's one.
        launcher: what starts a process, such as `["accelerate", "launch", "--num_processes", "8"]`; None takes this
            Python.
        evaluate: whether runs are evaluated by samples after training (`simpletuner evaluate`).
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    base: str
    output_dir: str
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: list[int] | None = Field(None, min_length=1)
    launcher: list[str] | None = Field(None, min_length=1)
    evaluate: bool = True


@dataclass(frozen=True)
class AblationRun:
    """One run: its configuration, and how its name and its seed came about."""

    name: str
    arm: str
    values: dict[str, Any]

    @property
    def folder(self) -> Path:
        return local_path(self.values["output_dir"])

    @property
    def config_file(self) -> Path:
        return self.folder / CONFIG_FILE


def read_ablation(path: Path) -> tuple[Ablation, list[AblationRun]]:
    """The ablation in a file and its runs, nothing written yet.

    Raises:
        ValueError: names the file, what is wrong in it, and the mend.
    """
    content, problems = read_json_object(path)
    if problems:
        raise ValueError(_told(problems))
    if "base" not in content and "model_family" in content:
        raise ValueError(
            f"{path}: is the configuration of one run. An ablation holds base (the path of such a file), output_dir "
            "and runs (what differs); see config/examples/sd15-urepa-ablation.json."
        )
    try:
        ablation = Ablation.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(
            f"{path}: {faults}. It holds base, output_dir and runs (seeds, launcher, evaluate)."
        ) from error
    base, problems = read_json_object(local_path(ablation.base))
    if problems:
        raise ValueError(f"{path}: base: {_told(problems)}")
    runs = []
    for arm, options in ablation.runs.items():
        if not arm or Path(arm).name != arm:
            raise ValueError(f"{path}: runs: {arm!r} can't name a folder. Take letters, digits, '-' and '_'.")
        reserved = sorted(plain_names(options).keys() & {"output_dir", "resume_from_checkpoint"})
        if reserved:
            raise ValueError(f"{path}: runs.{arm} sets {reserved[0]}, which the ablation decides. Remove it.")
        for seed in [None] if ablation.seeds is None else ablation.seeds:
            name = arm if seed is None else f"{arm}-seed-{seed}"
            own = {"output_dir": str(Path(ablation.output_dir) / name)} | ({} if seed is None else {"seed": seed})
            runs.append(AblationRun(name, arm, plain_names(base) | plain_names(options) | own))
    return ablation, runs


def write_configs(runs: Iterable[AblationRun]) -> list[Problem]:
    """Writes each run's `config.json` and returns what is wrong with them; each warning once.

    Raises:
        ValueError: a run was begun with other options.
    """
    problems: dict[str, Problem] = {}
    for run in runs:
        text = json.dumps(run.values, indent=2) + "\n"
        if run.config_file.is_file() and _is_begun(run):
            there = read_object(run.config_file)
            differing = sorted(n for n in there.keys() | run.values.keys() if there.get(n) != run.values.get(n))
            if differing:
                name = differing[0]
                raise ValueError(
                    f"{run.config_file}: {name} is {there.get(name)!r} in the run that was begun there and "
                    f"{run.values.get(name)!r} now. Remove {run.folder}, or give the run another name."
                )
        run.folder.mkdir(parents=True, exist_ok=True)
        beside = run.config_file.with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(run.config_file)
        _, found = check_config_file(run.config_file, [], FAMILIES)
        for problem in found:
            key = str(problem) if problem.severity == "warning" else f"{run.name}: {problem}"
            option = problem.option if problem.severity == "warning" else f"{run.name}: {problem.option}"
            problems[key] = Problem(option, problem.message, problem.mend, problem.severity)
    return list(problems.values())


def run_ablation(path: Path, *, only: Sequence[str] = (), say: Any = print) -> int:
    """Trains and evaluates what is left to do of an ablation, then writes the table; returns the exit code.

    Args:
        only: names of runs; the others are left alone, so that several machines can share an ablation.
        say: prints a line.

    Raises:
        ValueError: the file, a configuration in it, or a name in `only` can't be used.
    """
    ablation, runs = read_ablation(path)
    unknown = sorted(set(only) - {run.name for run in runs})
    if unknown:
        raise ValueError(f"--only: there is no run {unknown[0]!r}; there are {', '.join(run.name for run in runs)}.")
    problems = write_configs(runs)
    for problem in problems:
        say(str(problem))
    if has_errors(problems):
        return 2
    chosen = [run for run in runs if not only or run.name in only]
    failed = []
    for number, run in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {run.name}")
        for command in _commands(run, ablation):
            code = run_command(command)
            if code == INTERRUPTED:
                say("Stopped; the same command goes on from here.")
                return INTERRUPTED
            if code != 0:
                say(f"{run.name}: `{command[command.index('simpletuner.cli') + 1]}` failed with exit code {code}.")
                failed.append(run.name)
                break
            if _is_stopped(run):
                say("Stopped; the same command goes on from here.")
                return INTERRUPTED
    write_comparison(local_path(ablation.output_dir), runs)
    say(f"Written: {local_path(ablation.output_dir) / TABLE}")
    if failed:
        say(f"Failed: {', '.join(failed)}. The same command tries them again.")
    return 1 if failed else 0


def run_command(command: Sequence[str]) -> int:
    """Runs a command to its end and returns its exit code; 130 where this process was asked to stop meanwhile.

    Ctrl-C and SIGTERM are passed on as SIGTERM and the end is waited for, so that a training saves before it obeys.
    """
    process = subprocess.Popen(command)
    is_stopped = False

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True
        process.terminate()

    with stop_on_signals(stop):
        code = process.wait()
    return INTERRUPTED if is_stopped else code


def _commands(run: AblationRun, ablation: Ablation) -> Iterable[list[str]]:
    """What is left to do of a run; asked one after the other, as the first decides about the second."""
    launcher = [sys.executable, "-P"] if ablation.launcher is None else ablation.launcher
    common = [*launcher, "-m", "simpletuner.cli"]
    if not _is_trained(run):
        resume = ["--resume_from_checkpoint", "latest"] if find_checkpoints(run.folder) else []
        yield [*common, "train", "--config", str(run.config_file), *resume]
    if ablation.evaluate and not evaluations(run.folder):
        yield [*common, "evaluate", "--config", str(run.config_file)]


def _is_begun(run: AblationRun) -> bool:
    return bool(find_checkpoints(run.folder)) or _is_trained(run)


def _is_trained(run: AblationRun) -> bool:
    """Whether the trained model, which a run writes at its very end, is there."""
    return any(run.folder.glob("*.safetensors")) or any(run.folder.glob("*/config.json"))


def _is_stopped(run: AblationRun) -> bool:
    """Whether a training ended well, but before its end: it was asked to."""
    return not _is_trained(run)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """What `simpletuner evaluate` found of a run, by step."""
    found = [read_object(path) for path in folder.glob("evaluation/step-*/metrics.json")]
    return sorted(found, key=lambda evaluation: evaluation["step"])


# The comparison


def write_comparison(folder: Path, runs: Sequence[AblationRun]) -> list[dict[str, Any]]:
    """Writes the table, its numbers as JSON, and the figure; returns a row a run that has results."""
    rows = [row for run in runs if (row := _row(run, runs)) is not None]
    if not rows:
        return []
    measures = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    (folder / NUMBERS).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(_table(rows, measures), encoding="utf-8")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    panels = {
        name: {
            arm: [row["measures"][name] for row in rows if row["arm"] == arm and name in row["measures"]]
            for arm in arms
        }
        for name in measures
    }
    plot_bars(folder / FIGURE, panels)
    return rows


def _row(run: AblationRun, runs: Sequence[AblationRun]) -> dict[str, Any] | None:
    """What a run came to: the means of its last training steps, and its last evaluation."""
    trained = read_metrics(run.folder / METRICS_FILE)
    if not trained:
        return None
    measures: dict[str, float] = {}
    for name in TRAINING_MEASURES:
        values = [row[name] for row in trained[-LAST_ROWS:] if name in row]
        if values:
            measures[name] = sum(values) / len(values)
    evaluated = evaluations(run.folder)
    if evaluated:
        measures |= evaluated[-1]["metrics"]
    return {
        "run": run.name,
        "arm": run.arm,
        "step": int(trained[-1]["step"]),
        "finished": _is_trained(run),
        "options": _differing(run, runs),
        "measures": measures,
        "features": evaluated[-1]["features"] if evaluated else None,
    }


def _differing(run: AblationRun, runs: Sequence[AblationRun]) -> dict[str, Any]:
    """The options that are not the same in all runs, the defaults spelt out."""
    defaults = {option.name: option.default for option in describe_all(Config)}
    names = dict.fromkeys(name for other in runs for name in other.values)
    values = {name: [other.values.get(name, defaults.get(name)) for other in runs] for name in names}
    return {
        name: run.values.get(name, defaults.get(name))
        for name, all_values in values.items()
        if name not in ("output_dir", "seed") and any(value != all_values[0] for value in all_values)
    }


def _table(rows: Sequence[dict[str, Any]], measures: Sequence[str]) -> str:
    """Markdown: a row a run, its options and its measures."""
    options = list(dict.fromkeys(name for row in rows for name in row["options"]))
    headings = ["run", "step", *options, *measures]
    lines = ["# Ablation", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for row in rows:
        name = row["run"] if row["finished"] else f"{row['run']} (unfinished)"
        shown = [_shown(row["options"].get(option)) for option in options]
        numbers = [_shown(row["measures"].get(measure)) for measure in measures]
        lines.append(f"| {' | '.join([name, str(row['step']), *shown, *numbers])} |")
    encoders = sorted({row["features"] for row in rows if row["features"]})
    if encoders:
        lines += ["", f"Samples are measured in the features of {', '.join(encoders)}."]
    lines += ["", f"Measures of the training are means of its last {LAST_ROWS} steps; no loss says how samples look."]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)


def _told(problems: Iterable[Problem]) -> str:
    return "; ".join(map(str, problems))
