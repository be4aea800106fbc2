"""Runs as they are now: read from their records and from the table of processes, each time anew.

A server that was started again so knows as much as the one before.
"""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpletuner.configuration.json_files import read_object
from simpletuner.configuration.loading import plain_names
from simpletuner.helpers.utils.run_folder import find_checkpoints, read_state
from simpletuner.webui.confinement import inside
from simpletuner.webui.keeper import LOG_FILE, RECORD_FILE
from simpletuner.webui.records import (
    Command,
    Exit,
    Record,
    config_file,
    current_facts,
    metrics_path,
    read_exit,
    read_processes,
    read_record,
    read_stop,
)
from simpletuner.webui.site import Site
from simpletuner.webui.table import newest_rows

State = Literal["starting", "running", "stopping", "finished", "stopped", "failed", "killed"]
ACTIVE = ("starting", "running", "stopping")
_START_SECONDS = 60.0  # within which the keeper has told of itself, or never will
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}", re.ASCII)


class RunError(ValueError):
    """A run can't be started, stopped or read; the message says why, and what to do."""


class RunNotFound(RunError):
    """There is no such run."""


class RunConflict(RunError):
    """It can't be done now: the run, or another one in its folder, is active, or has ended already."""


@dataclass(frozen=True)
class Run:
    """One run as it is now.

    Attributes:
        output_dir: resolved; it lies in the site's roots.
        started: Unix time of the newest start. ended: of its end, None while it is active.
        pid: the trainer's, while it is alive.
        exit_code: negative for a signal; None while it is active, or if nobody saw the end.
        state: `stopped` was asked to, and saved; `failed` has an exit code; `killed` got a signal, or is gone without
            a word.
        starts: how often it was started.
        folder: its record.
    """

    id: str
    project: str
    command: Command
    output_dir: Path
    started: float
    ended: float | None
    pid: int | None
    exit_code: int | None
    state: State
    starts: int
    folder: Path


def list_runs(site: Site) -> list[Run]:
    """All runs of the site whose records can be read, newest first."""
    found = []
    for record in site.runs.glob(f"*/{RECORD_FILE}"):
        try:
            found.append(read_run(site, record.parent.name))
        except RunError:
            continue
    return sorted(found, key=lambda run: (run.started, run.id), reverse=True)


def read_run(site: Site, run_id: str) -> Run:
    """The run of this id as it is now.

    Raises:
        RunNotFound: there is none. RunError: its record or its folder can't be used.
    """
    folder = _folder(site, run_id)
    try:
        record = read_record(folder)
        output_dir = inside(record.output_dir, site.roots)
    except FileNotFoundError as error:
        raise RunNotFound(f"There is no run {run_id!r}.") from error
    except (OSError, ValueError) as error:  # Refused is one
        raise RunError(f"The run {run_id!r} can't be read: {error}") from error
    number = len(record.starts)
    state, pid, ended = _state(folder, record)
    return Run(
        run_id,
        record.project,
        record.command,
        output_dir,
        record.starts[-1].started,
        None if ended is None else ended.ended,
        pid,
        None if ended is None else ended.code,
        state,
        number,
        folder,
    )


def is_active(run: Run) -> bool:
    """Whether its processes are alive, or about to be."""
    return run.state in ACTIVE


def can_resume(run: Run) -> bool:
    """Whether it has ended and there is an intact checkpoint to go on from."""
    if is_active(run) or run.command != "train" or record_of(run).archived is not None:
        return False
    return any(_is_intact(folder) for _, folder in reversed(find_checkpoints(run.output_dir)))


def record_of(run: Run) -> Record:
    """A run's record. Raises `RunError` if it is gone."""
    try:
        return read_record(run.folder)
    except (OSError, ValueError) as error:
        raise RunNotFound(f"The record of the run {run.id} is gone: {error}") from error


def run_config(run: Run) -> dict[str, Any]:
    """The configuration of the newest start, names without "--"; secrets are in it. Raises `RunError`."""
    try:
        return plain_names(read_object(config_file(run.folder, run.starts)))
    except (OSError, ValueError) as error:
        raise RunError(f"The configuration of the run {run.id!r} can't be read: {error}") from error


def _folder(site: Site, run_id: str) -> Path:
    if not _ID.fullmatch(run_id):
        raise RunNotFound(f"There is no run {run_id!r}.")
    return site.runs / run_id


def _state(folder: Path, record: Record) -> tuple[State, int | None, Exit | None]:
    number, started = len(record.starts), record.starts[-1].started
    ended = read_exit(folder, number)
    if ended is None:
        processes = read_processes(folder, number)
        if processes is None and time.time() - started < _START_SECONDS:
            return "starting", None, None
        if processes is not None and (processes.child is not None or processes.keeper is not None):
            return _active_state(folder, record), processes.child, None
        ended = read_exit(folder, number)  # written since
    ended = ended or Exit(None, _last_sign(folder, started))
    state = "killed" if ended.code is None else _ended_state(folder, record, ended.code)
    return state, None, ended


def _active_state(folder: Path, record: Record) -> State:
    if read_stop(folder, len(record.starts)) is not None:
        return "stopping"
    is_training = record.command == "cache" or current_facts(folder, record) is not None
    return "running" if is_training else "starting"


def _ended_state(folder: Path, record: Record, code: int) -> State:
    was_asked = read_stop(folder, len(record.starts)) is not None
    if code < 0:
        return "stopped" if was_asked and code == -signal.SIGTERM else "killed"
    if code > 0:
        return "failed"
    facts = current_facts(folder, record)
    if record.command == "cache" or facts is None:
        return "stopped" if was_asked else "finished"
    # Also where somebody else sent SIGTERM: it saved and left.
    rows = newest_rows(metrics_path(folder, record))
    last = rows[-1]["step"] if rows else facts.first_step
    return "stopped" if last < facts.total_steps else "finished"


def _last_sign(folder: Path, started: float) -> float:
    """When something was last heard of a start whose end nobody saw."""
    try:
        return max(started, (folder / LOG_FILE).stat().st_mtime)
    except OSError:
        return started


def _is_intact(checkpoint: Path) -> bool:
    try:
        read_state(checkpoint)
    except ValueError:
        return False
    return True
