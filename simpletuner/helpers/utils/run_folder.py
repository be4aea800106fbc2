"""What lies in a run's `output_dir`, for all that read it. Free of torch: the WebUI reads it too.

| File | What it is |
|---|---|
| `metrics.jsonl` | one row of numbers a step |
| `run.json` | the run's length, and the step at which it was last started |
| `checkpoint-{step}/` | a checkpoint, whole if its manifest says so |
| `validation/step-{step}-{number}.png` or `.mp4` | samples drawn meanwhile |
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
FACTS_FILE = "run.json"
PREFIX = "checkpoint-"
MANIFEST = "manifest.json"
VALIDATION_FOLDER = "validation"
_SAMPLE = re.compile(r"step-(\d+)-(\d+)\.(png|mp4)")


@dataclass(frozen=True)
class RunFacts:
    """`total_steps` of the whole run, and the step at which the training process began."""

    total_steps: int
    first_step: int


@dataclass(frozen=True)
class ValidationSample:
    """A file drawn at a validation: the `number`-th of the samples of `step`."""

    step: int
    number: int
    path: Path


def write_facts(output_dir: Path, facts: RunFacts) -> None:
    """Writes `run.json`, wholly or not at all."""
    beside = output_dir / f".{FACTS_FILE}.partial"
    beside.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    beside.replace(output_dir / FACTS_FILE)


def read_facts(output_dir: Path) -> RunFacts | None:
    """What `write_facts` wrote; None where there is nothing that can be read."""
    try:
        return RunFacts(**json.loads((output_dir / FACTS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, in order; a last line torn by a crash is left out."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def sample_path(output_dir: Path, step: int, number: int, suffix: str) -> Path:
    """The file of a validation sample; `suffix` is `.png` or `.mp4`."""
    return output_dir / VALIDATION_FOLDER / f"step-{step:06d}-{number}{suffix}"


def find_samples(output_dir: Path) -> list[ValidationSample]:
    """The validation samples, in the order of step and number."""
    found = []
    for path in (output_dir / VALIDATION_FOLDER).glob("step-*"):
        match = _SAMPLE.fullmatch(path.name)
        if match is not None:
            found.append(ValidationSample(int(match[1]), int(match[2]), path))
    return sorted(found, key=lambda sample: (sample.step, sample.number))


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return output_dir / f"{PREFIX}{step}"


def find_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints in `output_dir`, oldest first, intact or not."""
    found = []
    for folder in output_dir.glob(f"{PREFIX}*"):
        step = folder.name.removeprefix(PREFIX)
        if folder.is_dir() and step.isdecimal():
            found.append((int(step), folder))
    return sorted(found)


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer's state in a checkpoint.

    Raises:
        ValueError: the checkpoint isn't intact; says which file is missing or torn.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        state, files = manifest["state"], dict(manifest["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is no intact checkpoint: its {MANIFEST} can't be read ({error}).") from error
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{folder} is no intact checkpoint: {name} is missing or torn.")
    return state
