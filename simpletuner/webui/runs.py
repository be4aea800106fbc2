"""Runs: trainings and cachings that a server starts, and that outlive it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from simpletuner.webui.files import only_writer
from simpletuner.webui.known_runs import (
    Run,
    RunConflict,
    RunError,
    RunNotFound,
    State,
    can_resume,
    is_active,
    list_runs,
    read_run,
    record_of,
    run_config,
)
from simpletuner.webui.records import Command, read_processes, read_stop, stop_file
from simpletuner.webui.site import Site
from simpletuner.webui.starting import resume_run, start_run

__all__ = [
    "PATIENCE",
    "Command",
    "Run",
    "RunConflict",
    "RunError",
    "RunNotFound",
    "State",
    "can_resume",
    "forget_run",
    "is_active",
    "list_runs",
    "read_run",
    "record_of",
    "resume_run",
    "run_config",
    "start_run",
    "stop_run",
]

PATIENCE = 15.0
"""Seconds that a run has for saving before it may be killed."""


def stop_run(site: Site, run_id: str, *, at_once: bool = False) -> Run:
    """Asks a run to stop: a training finishes its step, saves and leaves.

    With `at_once` it is killed, `PATIENCE` seconds after it was first asked or later; where it wasn't yet, it is asked.

    Raises:
        RunConflict: it has ended already, or had too little time to save.
    """
    with _changing(site, run_id) as run:
        if not is_active(run):
            raise RunConflict(f"The run {run_id} has ended already ({run.state}).")
        asked, now = read_stop(run.folder, run.starts), time.time()
        if asked is None:
            at_once = False
            with suppress(OSError):  # a disk that takes nothing must not keep it from stopping
                stop_file(run.folder, run.starts).touch()
        elif at_once and now - asked < PATIENCE:
            raise RunConflict(f"The run {run_id} has {PATIENCE:.0f} seconds to save before it is killed. Wait for it.")
        processes = read_processes(run.folder, run.starts)
        if processes is not None:
            _signal(processes.child, processes.keeper, processes.group, at_once=at_once)
    return read_run(site, run_id)


def _signal(child: int | None, keeper: int | None, group: int, *, at_once: bool) -> None:
    try:
        if at_once and (child is not None or keeper is not None):  # one of its members lives, so the group is ours
            os.killpg(group, signal.SIGKILL)
        elif child is not None:
            os.kill(child, signal.SIGTERM)
    except ProcessLookupError:  # it ended since
        pass


def forget_run(site: Site, run_id: str) -> None:
    """Removes the record of a run that has ended; what it wrote to its `output_dir` stays.

    Raises:
        RunConflict: it hasn't ended.
    """
    with _changing(site, run_id) as run:
        if is_active(run):
            raise RunConflict(f"The run {run_id} is active. Stop it first.")
        aside = run.folder.with_name(f".forgotten-{run_id}")
        run.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _changing(site: Site, run_id: str) -> Iterator[Run]:
    """The run, while nobody else starts or ends one."""
    read_run(site, run_id)
    try:
        with only_writer(site.runs):
            yield read_run(site, run_id)
    except OSError as error:
        raise RunError(f"The run {run_id} can't be changed: {error}") from error
