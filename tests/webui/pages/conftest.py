"""What tests of the pages of runs share."""

from __future__ import annotations

from collections.abc import Iterator
from subprocess import DEVNULL, Popen

import pytest


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a process that does nothing, in the place of a trainer."""
    with Popen(["sleep", "600"], stdin=DEVNULL, start_new_session=True) as process:
        yield process.pid
        process.kill()
