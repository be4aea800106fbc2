"""What a run shows of itself: numbers, progress, samples, checkpoints and its log, read from the files as they are."""

from __future__ import annotations

import os
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simpletuner.configuration import Config
from simpletuner.helpers.utils.run_folder import (
    MANIFEST,
    ValidationSample,
    find_checkpoints,
    find_samples,
    read_state,
)
from simpletuner.webui.keeper import LOG_FILE
from simpletuner.webui.records import Record, current_facts, metrics_path
from simpletuner.webui.runs import Run, RunError, can_resume, is_active, record_of, run_config
from simpletuner.webui.secrets import redact
from simpletuner.webui.table import Row, newest_rows, read_table

LORA_FILE, WEIGHTS_FILE = "pytorch_lora_weights.safetensors", "weights.safetensors"
MOST_LOG_BYTES = 2**18
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_RECENT = 20  # steps whose median tells how long one takes


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps, and seconds; None for what isn't known (yet)."""

    step: int
    total: int | None
    step_seconds: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run; `files` are the paths in it of what is exported: the LoRA, or the trained weights."""

    step: int
    folder: Path
    bytes: int
    intact: bool
    files: tuple[str, ...]


def progress(run: Run) -> Progress:
    """How far a run is. Raises `RunError` if its record is gone."""
    record = record_of(run)
    rows = newest_rows(metrics_path(run.folder, record))
    facts = current_facts(run.folder, record)
    first = 0 if facts is None else facts.first_step
    step = rows[-1]["step"] if rows else first
    total = _planned(run) if facts is None else facts.total_steps
    seconds = [row["step_seconds"] for row in rows[-_RECENT:] if isinstance(row.get("step_seconds"), (int, float))]
    median = statistics.median(seconds) if seconds else None
    left = None if total is None or median is None or not is_active(run) else max(0, total - step) * median
    return Progress(step, total, median, left)


def _planned(run: Run) -> int | None:
    """The steps that the configuration asks for, where it does so by their number."""
    try:
        steps = run_config(run).get("max_train_steps", Config.model_fields["max_train_steps"].default)
    except RunError:
        return None
    return steps if run.command == "train" and isinstance(steps, int) and steps > 0 else None


def describe(run: Run) -> dict[str, Any]:
    """A run with its progress as plain data, for programs."""
    facts = {name: value for name, value in asdict(run).items() if name not in ("folder", "output_dir")}
    return facts | {
        "output_dir": str(run.output_dir),
        "can_resume": can_resume(run),
        "progress": asdict(progress(run)),
    }


def metrics(run: Run, *, after: int = 0, most: int | None = None) -> list[Row]:
    """The rows of the steps after `after`, in order; numbers that aren't finite are None.

    With `most` (from 1 on) they are thinned out evenly to so many, of which the first and the last are kept, and those
    of evaluations as long as they are few.

    Raises:
        RunError: the file can't be read.
    """
    try:
        table = read_table(metrics_path(run.folder, record_of(run)))
    except OSError as error:
        raise RunError(f"The metrics of the run {run.id} can't be read: {error}") from error
    first = table.count
    while first > 0 and table.rows[first - 1]["step"] > after:  # pollers want a few
        first -= 1
    rows = table.rows[first : table.count]
    return rows if most is None or len(rows) <= most else _thinned(rows, most)


def _thinned(rows: list[Row], most: int) -> list[Row]:
    rare = {number for number, row in enumerate(rows) if any(name.startswith("eval_") for name in row)}
    if len(rare) > most // 2:
        rare = set()
    count = most - len(rare)
    spread = {len(rows) - 1} if count == 1 else {i * (len(rows) - 1) // (count - 1) for i in range(count)}
    return [rows[number] for number in sorted(spread | rare)]


def samples(run: Run) -> list[ValidationSample]:
    """The validation samples that were drawn in this run, in the order of step and number."""
    record = record_of(run)
    return [sample for sample in find_samples(run.output_dir) if _is_own(record, sample.path)]


def _is_own(record: Record, path: Path) -> bool:
    """Whether a file in `output_dir` is of this run, not of one before or after it."""
    first = record.starts[0]
    since = 0.0 if first.resumed else first.started
    try:
        written = path.stat().st_mtime
    except OSError:
        return False
    return since <= written and (record.archived is None or written < record.archived)


def checkpoints(run: Run) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first; those of a run whose folder another one took over are the other's."""
    if record_of(run).archived is not None:
        return []
    return [_checkpoint(step, folder) for step, folder in find_checkpoints(run.output_dir)]


def _checkpoint(step: int, folder: Path) -> Checkpoint:
    try:
        read_state(folder)
        intact = True
    except ValueError:
        intact = False
    sizes = {}
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file():
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
        except OSError:  # removed meanwhile
            continue
    return Checkpoint(step, folder, sum(sizes.values()), intact, _exported(sizes))


def _exported(files: dict[str, int]) -> tuple[str, ...]:
    """The LoRA with the scheduler that it needs, else the trained weights, whole or sharded."""
    for name in (LORA_FILE, WEIGHTS_FILE):
        if name in files:
            beside = [other for other in files if other.startswith("scheduler/")]
            return (name, *(beside if name == LORA_FILE else []))
    return tuple(name for name in files if name.startswith("pytorch_model_fsdp"))


def sample_stamps(run: Run) -> list[tuple[tuple[int, int, int], str]]:
    """When each sample was written, in nanoseconds, its step and its number, with its name; in this order."""
    found = []
    for sample in samples(run):
        try:
            written = sample.path.stat().st_mtime_ns
        except OSError:
            continue
        found.append(((written, sample.step, sample.number), sample.path.name))
    return sorted(found)


def checkpoint_stamps(run: Run) -> list[tuple[int, int]]:
    """When each checkpoint was completed, in nanoseconds, and its step; in this order."""
    found = []
    for step, folder in find_checkpoints(run.output_dir) if record_of(run).archived is None else []:
        try:
            found.append(((folder / MANIFEST).stat().st_mtime_ns, step))
        except OSError:
            continue
    return sorted(found)


def log_tail(run: Run, lines: int = 200) -> str:
    """The last lines that a run printed, made plain and without secrets."""
    try:
        with (run.folder / LOG_FILE).open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - MOST_LOG_BYTES))
            content = file.read(MOST_LOG_BYTES)
    except OSError:
        return ""
    if end > MOST_LOG_BYTES:
        content = content.partition(b"\n")[2]
    kept = plain_log(content).splitlines(keepends=True)[-lines:] if lines > 0 else []
    return "".join(kept)


def plain_log(content: bytes) -> str:
    """A log as text without secrets, in which a progress bar stands as it was last drawn."""
    text = _ESCAPES.sub("", content.decode(errors="replace"))
    drawn = (_last_drawn(line) for line in text.split("\n"))
    return redact("\n".join(drawn))


def _last_drawn(line: str) -> str:
    parts = [part for part in line.split("\r") if part.strip()]
    return _CONTROLS.sub("", parts[-1]).rstrip() if parts else ""
