"""Runs a function in a process of its own, which a test may kill, interrupt or starve of disk space.

A server process imports what they need once and forks them, so that they start in a moment and share no thread, lock
or open file with the tests.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds after which a process counts as hung

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.helpers.data.build_alone"])

Say = Callable[[Any], None]


@dataclass(frozen=True)
class Apart:
    """A process, and what it says."""

    process: BaseProcess
    messages: Connection

    def hear(self) -> Any:
        """The next thing that the function said; fails where it says no more."""
        assert self.messages.poll(PATIENCE), "the process hangs"
        return self.messages.recv()

    def exit_code(self) -> int:
        """Waits for the end; negative is the signal that ended it."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "the process hangs"
        return self.process.exitcode


@contextmanager
def apart(
    target: Callable[..., None], *arguments: Any, output: Path | None = None, **environment: str
) -> Iterator[Apart]:
    """Starts `target(say, *arguments)`, in which `say(anything)` sends a message; it is gone when the block ends.

    Args:
        output: a file for all that it prints. environment: what is set there besides.
    """
    mine, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_run, args=(target, arguments, theirs, output, environment))
    process.start()
    theirs.close()
    try:
        yield Apart(process, mine)
    finally:
        process.kill()
        process.join()
        mine.close()


def _run(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    messages: Connection,
    output: Path | None,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    if output is not None:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    target(messages.send, *arguments)
