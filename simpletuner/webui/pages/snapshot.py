"""What the page of a run shows at one moment, read in one go: it blocks, so a page calls it in a thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from simpletuner.helpers.utils.run_folder import ValidationSample
from simpletuner.webui.machine import machine_state
from simpletuner.webui.pages.charts import MOST_POINTS, Row, is_evaluation
from simpletuner.webui.records import read_stop
from simpletuner.webui.runs import Run, can_resume, is_active, read_run
from simpletuner.webui.site import Site
from simpletuner.webui.watch import Checkpoint, Progress, checkpoints, log_tail, metrics, progress, samples

LOG_LINES = 200


@dataclass(frozen=True)
class Picture:
    """A validation sample as a page shows it; `version` changes when a resumed run draws it again."""

    step: int
    number: int
    name: str
    version: int

    @property
    def is_video(self) -> bool:
        return self.name.endswith(".mp4")

    def address(self, run_id: str) -> str:
        """Where the browser gets the file."""
        return f"/api/v1/runs/{quote(run_id)}/samples/{quote(self.name)}?v={self.version}"


@dataclass(frozen=True)
class Seen:
    """What a page knows of a run's rows: how often it had been started, its last row, and all evaluations."""

    starts: int = 0
    last: Row = field(default_factory=dict)
    evaluations: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    `rows` are at most 400 rows of steps, from the whole run, or None if none came since; `seen` is for the next call.
    `stopping` is for how many seconds the run has been stopping, None if it isn't.
    """

    run: Run
    active: bool
    resumable: bool
    stopping: float | None
    progress: Progress
    rows: list[Row] | None
    seen: Seen
    pictures: tuple[Picture, ...]
    checkpoints: tuple[Checkpoint, ...]
    log: str
    machine: dict[str, Any]

    @property
    def evaluations(self) -> tuple[Row, ...]:
        """The rows of evaluations, in order."""
        return self.seen.evaluations


def collect(site: Site, run_id: str, since: Seen | None = None) -> Snapshot:
    """Reads a run's state, and its rows if there are others than `since` knows of.

    Raises:
        RunError: there is no such run.
    """
    run = read_run(site, run_id)
    rows, seen = _new_rows(run, since)
    asked = read_stop(run.folder, run.starts) if run.state == "stopping" else None
    return Snapshot(
        run=run,
        active=is_active(run),
        resumable=can_resume(run),
        stopping=None if asked is None else time.time() - asked,
        progress=progress(run),
        rows=rows,
        seen=seen,
        pictures=pictures(samples(run)),
        checkpoints=tuple(checkpoints(run)),
        log=log_tail(run, LOG_LINES),
        machine=machine_state(),
    )


def pictures(found: Sequence[ValidationSample]) -> tuple[Picture, ...]:
    """The samples with what tells a new drawing from an older one of the same name; files that went are left out."""
    shown = []
    for sample in found:
        try:
            version = sample.path.stat().st_mtime_ns // 1_000_000
        except OSError:
            continue
        shown.append(Picture(sample.step, sample.number, sample.path.name, version))
    return tuple(shown)


def last_value(rows: Sequence[Row], metric: str) -> float | None:
    """The metric's value in the last row that has it."""
    return next((row[metric] for row in reversed(rows) if metric in row), None)


def _new_rows(run: Run, since: Seen | None) -> tuple[list[Row] | None, Seen]:
    """The run's rows, thinned out, or None; and what has been seen now.

    A run that is resumed takes rows back: then its last row is of an earlier step than before.
    """
    rows = metrics(run, most=MOST_POINTS - 1)
    last = rows[-1] if rows else {}
    if since is not None and (since.starts, since.last) == (run.starts, last):
        return None, since
    known: dict[int, Row] = {}
    if since is not None and since.starts == run.starts and since.last.get("step", 0) <= last.get("step", 0):
        known = {row["step"]: row for row in since.evaluations}
        fresh = metrics(run, after=since.last.get("step", 0) - 1)  # an evaluation's row follows its step's own
    else:
        fresh = metrics(run)
    known |= {row["step"]: row for row in fresh if is_evaluation(row)}
    # The charts end with the last step: behind it stands its evaluation's row, for which it may have been thinned out.
    ending = metrics(run, after=last["step"] - 1) if rows else []
    trained = {row["step"]: row for row in (*rows, *ending) if not is_evaluation(row)}
    return list(trained.values()), Seen(run.starts, last, tuple(known[step] for step in sorted(known)))
