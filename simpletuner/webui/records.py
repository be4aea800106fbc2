"""The record of a run: a folder of small files, from which every server reads the same.

| File | What it is |
|---|---|
| `record.json` | what was started, and every start of it |
| `config-{n}.json` | the configuration of the n-th start |
| `process-{n}.json`, `exit-{n}.json` | written by the keeper |
| `stop-{n}` | made when somebody asked this start to stop |
| `log.txt` | what the trainer printed, in all starts |
| `metrics.jsonl`, `run.json` | what the trainer wrote, once another run was begun in the same `output_dir` |
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from simpletuner.helpers.utils.run_folder import FACTS_FILE, METRICS_FILE, RunFacts, read_facts
from simpletuner.webui.files import replace_file
from simpletuner.webui.keeper import RECORD_FILE, exit_file, process_file, process_mark

Command = Literal["train", "cache"]


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        started: Unix time. resumed: whether it goes on with what lay in `output_dir`.
        facts_before, metrics_before: which `run.json` and `metrics.jsonl` lay there before (see `file_mark`).
    """

    started: float
    resumed: bool
    command: list[str]
    facts_before: str
    metrics_before: str


@dataclass(frozen=True)
class Record:
    """What `record.json` holds; `archived` is when another run took over `output_dir`, a Unix time."""

    id: str
    project: str
    command: Command
    output_dir: str
    starts: list[Start]
    archived: float | None = None


@dataclass(frozen=True)
class Processes:
    """The processes of a start: pids of those that are alive, else None; `group` is that of all of them."""

    keeper: int | None
    child: int | None
    group: int


@dataclass(frozen=True)
class Exit:
    """How a start ended: the exit code (negative: a signal's number; None: nobody saw it), and when, a Unix time."""

    code: int | None
    ended: float


def read_record(folder: Path) -> Record:
    """What a folder's `record.json` holds. Raises `OSError` or `ValueError`."""
    content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    try:
        record = replace(Record(**content), starts=[Start(**start) for start in content["starts"]])
        if not record.starts:
            raise KeyError("starts")
        return record
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / RECORD_FILE} is no record of a run: {error}") from error


def write_record(folder: Path, record: Record) -> None:
    """Writes `record.json`, wholly or not at all. Raises `OSError`."""
    replace_file(folder / RECORD_FILE, json.dumps(asdict(record), indent=1).encode())


def rename_in_records(runs: Path, project: str, new: str) -> None:
    """The runs of a project go along with its name. Raises `OSError`."""
    for file in runs.glob(f"*/{RECORD_FILE}"):
        try:
            record = read_record(file.parent)
        except (OSError, ValueError):  # none that is shown anywhere
            continue
        if record.project == project:
            write_record(file.parent, replace(record, project=new))


def config_file(folder: Path, start: int) -> Path:
    """The configuration with which a start was made."""
    return folder / f"config-{start}.json"


def stop_file(folder: Path, start: int) -> Path:
    """An empty file, which a full disk still takes, that is made when a start is first asked to stop."""
    return folder / f"stop-{start}"


def read_stop(folder: Path, start: int) -> float | None:
    """When a start was first asked to stop, a Unix time; None if it wasn't."""
    try:
        return stop_file(folder, start).stat().st_mtime
    except OSError:
        return None


def read_exit(folder: Path, start: int) -> Exit | None:
    """How a start ended, if its keeper saw it."""
    content = _read(exit_file(folder, start))
    return Exit(int(content["code"]), float(content["ended"])) if "code" in content else None


def read_processes(folder: Path, start: int) -> Processes | None:
    """Which processes of a start are alive, by pid and time of creation; None if the keeper hasn't told yet."""
    content = _read(process_file(folder, start))
    if not content:
        return None
    alive = {
        name: content[name]["pid"]
        for name in ("keeper", "child")
        if content[name]["mark"] is not None and process_mark(content[name]["pid"]) == content[name]["mark"]
    }
    return Processes(alive.get("keeper"), alive.get("child"), content["keeper"]["pid"])


def file_mark(path: Path) -> str:
    """What tells the file at a path from one written in its place later; "" if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def source(folder: Path, record: Record) -> Path:
    """The folder in which the run's own `metrics.jsonl` and `run.json` lie."""
    return Path(record.output_dir) if record.archived is None else folder


def metrics_path(folder: Path, record: Record) -> Path | None:
    """The run's `metrics.jsonl`; None while one of an earlier run lies in its place."""
    path, first = source(folder, record) / METRICS_FILE, record.starts[0]
    is_earlier = not first.resumed and record.archived is None and file_mark(path) == first.metrics_before
    return None if is_earlier else path


def current_facts(folder: Path, record: Record) -> RunFacts | None:
    """What the trainer wrote of the newest start; None before its first step."""
    where = source(folder, record)
    if record.archived is None and file_mark(where / FACTS_FILE) == record.starts[-1].facts_before:
        return None
    return read_facts(where)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
