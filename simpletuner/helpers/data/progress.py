"""How far the making of caches has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")

LINES = 10  # that a long task writes where there is no terminal
QUIET_SECONDS = 5.0  # a task shorter than this writes nothing there


class SpeedColumn(ProgressColumn):
    """Items a second, as the task calls them."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s")


class CacheProgress:
    """A context manager; silent unless `enabled`, as it is to be in the main process only."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._enabled = enabled
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), SpeedColumn())
        # Not in a file or a pipe, where it would be frozen bars without an end.
        self._bars = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )

    def task(self, description: str, total: int, unit: str = "records") -> Callable[[int], None]:
        """Starts a task of `total` items; call what it returns with the number of items done since."""
        if self._console.is_terminal or not self._enabled:
            number = self._bars.add_task(description, total=total, unit=unit)
            return lambda count: self._bars.advance(number, count)
        return self._lines(description, total, unit)

    def track(self, items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """The items; a task that advances with them."""
        advance = self.task(description, total)
        for item in items:
            yield item
            advance(1)

    def say(self, text: str) -> None:
        """Writes a line above the bars."""
        if self._enabled:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _lines(self, description: str, total: int, unit: str) -> Callable[[int], None]:
        started, done, told = time.monotonic(), 0, 0

        def advance(count: int) -> None:
            nonlocal done, told
            done = min(done + count, total)
            seconds, share = time.monotonic() - started, done * LINES // total
            if share > told and seconds > QUIET_SECONDS:
                told, speed = share, done / seconds
                left = f", {(total - done) / speed:.0f} s left" if done < total else ""
                self.say(f"{description}: {done}/{total}, {speed:.1f} {unit}/s{left}")

        return advance

    def __enter__(self) -> CacheProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()
