"""What happens to a run, as a stream that can be taken up again where it broke off, also at another server.

The id of an event is a cursor: how much of each file its reader has by then. What is sent next depends on the cursor
and the files alone.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from simpletuner.webui.keeper import LOG_FILE
from simpletuner.webui.records import metrics_path
from simpletuner.webui.runs import Run, RunError, is_active, read_run, record_of
from simpletuner.webui.site import Site
from simpletuner.webui.table import Table, read_table
from simpletuner.webui.watch import checkpoint_stamps, describe, plain_log, sample_stamps

LOOK_SECONDS = 0.5
LINGER_SECONDS = 5.0
QUIET_SECONDS = 15.0
MOST_ROWS = 500
MOST_LOG = 2**16
_TAIL_LINES = 200
_AT_ONCE = 16  # events worked out at a time, so that a slow reader of a long run holds few

Kind = Literal["rewind", "metrics", "status", "sample", "checkpoint", "log"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    | Kind | Data |
    |---|---|
    | `rewind` | `step`: rows of later steps are void, and come anew; -1: all |
    | `metrics` | `rows`: the rows that follow, at most 500 |
    | `sample` | `step`, `number`, `name` of the file, `version`, which changes when it is drawn again |
    | `checkpoint` | `step` |
    | `log` | `text` that follows; at first the last lines |
    | `status` | `describe(run)` |
    """

    id: str
    kind: Kind
    data: dict[str, Any]


@dataclass(frozen=True)
class Cursor:
    """What a reader has: bytes of `metrics.jsonl` and their checksum, the newest sample and checkpoint with their
    times, bytes of the log (None: nothing yet), and the checksum of the last status."""

    end: int = 0
    checksum: int = 0
    sample: tuple[int, int, int] = (0, 0, 0)
    checkpoint: tuple[int, int] = (0, 0)
    log: int | None = None
    status: int = 0

    def __str__(self) -> str:
        log = "" if self.log is None else self.log
        return "-".join(map(str, (self.end, self.checksum, *self.sample, *self.checkpoint, log, self.status)))


_CURSOR = re.compile(r"(?:\d{1,20}-){7}\d{0,20}-\d{1,20}", re.ASCII)
_UNKNOWN = Cursor(end=1)  # a place where no row ends: all comes anew


def read_cursor(text: str | None) -> Cursor:
    """The cursor that an event's id is; None is that of a new reader. What is no id makes all come anew."""
    if text is None:
        return Cursor()
    if not _CURSOR.fullmatch(text):
        return _UNKNOWN
    *numbers, log, status = text.split("-")
    end, checksum, written, step, number, completed, checkpoint = map(int, numbers)
    return Cursor(
        end,
        checksum,
        (written, step, number),
        (completed, checkpoint),
        int(log) if log else None,
        int(status),
    )


@dataclass(frozen=True)
class Look:
    """What lay there of a run at one moment; `over` is whether nothing more is to be waited for."""

    status: dict[str, Any]
    table: Table
    samples: list[tuple[tuple[int, int, int], str]]
    checkpoints: list[tuple[int, int]]
    log: Path
    log_size: int
    active: bool
    over: bool


def take_look(site: Site, run_id: str) -> Look:
    """Looks at the files of a run. Raises `RunError` or `OSError`."""
    run = read_run(site, run_id)  # first: if it has ended by now, then the files are complete
    log = run.folder / LOG_FILE
    try:
        log_size = log.stat().st_size
    except FileNotFoundError:  # removed, to free the disk
        log_size = 0
    return Look(
        describe(run),
        read_table(metrics_path(run.folder, record_of(run))),
        sample_stamps(run),
        checkpoint_stamps(run),
        log,
        log_size,
        is_active(run),
        _is_over(run),
    )


def _is_over(run: Run) -> bool:
    return run.ended is not None and time.time() - run.ended > LINGER_SECONDS


def pending(look: Look, cursor: Cursor) -> Iterator[tuple[Event, Cursor]]:
    """The events that a reader lacks, each with its cursor after it; `status` is the last."""

    def event(kind: Kind, data: dict[str, Any]) -> tuple[Event, Cursor]:
        return Event(str(cursor), kind, data), cursor

    table = look.table
    index, is_void = table.find(cursor.end, cursor.checksum)
    if is_void:
        cursor = _at_row(cursor, table, index)
        yield event("rewind", {"step": table.rows[index - 1]["step"] if index > 0 else -1})
    while index < table.count:
        rows = table.rows[index : min(index + MOST_ROWS, table.count)]
        index += len(rows)
        cursor = _at_row(cursor, table, index)
        yield event("metrics", {"rows": rows})
    for stamp, name in look.samples:
        if stamp > cursor.sample:
            cursor = replace(cursor, sample=stamp)
            written, step, number = stamp
            yield event("sample", {"step": step, "number": number, "name": name, "version": str(written)})
    for completed in look.checkpoints:
        if completed > cursor.checkpoint:
            cursor = replace(cursor, checkpoint=completed)
            yield event("checkpoint", {"step": completed[1]})
    for text, end in _log_parts(look, cursor.log):
        cursor = replace(cursor, log=end)
        yield event("log", {"text": text})
    checksum = zlib.crc32(json.dumps(look.status).encode())
    if checksum != cursor.status:
        cursor = replace(cursor, status=checksum)
        yield event("status", look.status)


def _at_row(cursor: Cursor, table: Table, index: int) -> Cursor:
    end, checksum = table.position(index)
    return replace(cursor, end=end, checksum=checksum)


def _log_parts(look: Look, start: int | None) -> Iterator[tuple[str, int]]:
    """What follows in the log in whole lines, and where it ends; a new reader gets the last lines alone."""
    is_new = start is None or start > look.log_size
    position = max(0, look.log_size - MOST_LOG) if start is None or is_new else start
    while position < look.log_size:
        with look.log.open("rb") as file:
            file.seek(position)
            content = file.read(min(MOST_LOG, look.log_size - position))
        whole = content.rfind(b"\n") + 1
        is_last = position + len(content) == look.log_size
        # What has no end of line is sent where none will come, or none came for so long.
        if (is_last and not look.active) or (whole == 0 and len(content) == MOST_LOG):
            whole = len(content)
        if whole == 0:
            return
        text = plain_log(content[:whole])
        if is_new:
            lines = text.splitlines(keepends=True)
            text, is_new = "".join(lines[1 if position > 0 else 0 :][-_TAIL_LINES:]), False
        position += whole
        yield text, position


async def events(site: Site, run_id: str, last_id: str | None = None) -> AsyncIterator[Event]:
    """What happens to a run after the event of this id; from its beginning without one.

    Ends by itself some seconds after the run has ended, or when it is forgotten.

    Raises:
        RunError: there is no such run.
    """
    async for event in events_and_silences(site, run_id, last_id):
        if event is not None:
            yield event


async def events_and_silences(
    site: Site, run_id: str, last_id: str | None = None, quiet: float = QUIET_SECONDS
) -> AsyncIterator[Event | None]:
    """Like `events`, with None after every `quiet` seconds in which nothing happened."""
    cursor = read_cursor(last_id)
    with _watcher(site, run_id) as watcher:
        while True:
            look, changed = watcher.look, watcher.changed
            if look is not None:
                batch = await asyncio.to_thread(_first, look, cursor)
                for event, cursor in batch:  # noqa: B007 (the last one is where the next batch begins)
                    yield event
                if batch:
                    continue
            if look is not None and look.over:
                return
            if watcher.task.done():
                await watcher.task  # raises why
                return
            try:
                async with asyncio.timeout(quiet):
                    await changed.wait()
            except TimeoutError:
                yield None


def _first(look: Look, cursor: Cursor) -> list[tuple[Event, Cursor]]:
    return list(islice(pending(look, cursor), _AT_ONCE))


class _Watcher:
    """Looks at a run again and again, for all that read its events: twenty cost as much as one."""

    def __init__(self, site: Site, run_id: str) -> None:
        self.look: Look | None = None
        self.changed = asyncio.Event()
        self.readers = 0
        self._site, self._run_id = site, run_id
        self.task = asyncio.create_task(self._watch(), name=f"events of {run_id}")
        self.task.add_done_callback(lambda _: self.changed.set())

    async def _watch(self) -> None:
        while self.look is None or not self.look.over:
            try:
                look = await asyncio.to_thread(take_look, self._site, self._run_id)
            except RunError:
                if self.look is None:
                    raise
                return  # forgotten meanwhile
            if self.look is None or _differ(look, self.look):
                self.look = look
                self.changed.set()
                self.changed = asyncio.Event()
            await asyncio.sleep(LOOK_SECONDS)


def _differ(one: Look, other: Look) -> bool:
    same_rows = one.table.marks is other.table.marks and one.table.count == other.table.count
    return not same_rows or replace(one, table=other.table) != other


_watchers: dict[tuple[asyncio.AbstractEventLoop, Path, str], _Watcher] = {}


@contextmanager
def _watcher(site: Site, run_id: str) -> Iterator[_Watcher]:
    """The watcher of a run, which ends with its last reader."""
    key = (asyncio.get_running_loop(), site.runs, run_id)
    watcher = _watchers.get(key)
    if watcher is None or watcher.task.done():
        watcher = _watchers[key] = _Watcher(site, run_id)
    watcher.readers += 1
    try:
        yield watcher
    finally:
        watcher.readers -= 1
        if watcher.readers == 0:
            watcher.task.cancel()
            if _watchers.get(key) is watcher:
                del _watchers[key]
