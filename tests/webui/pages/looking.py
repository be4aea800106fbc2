"""How a test looks at a page, and waits for what it will show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from nicegui.testing import User

PATIENT = 60
"""Looks at a page, a tenth of a second apart."""


def element(user: User, marker: str) -> Any:
    """An element of the page; any of them where several have the mark."""
    return user.find(marker=marker).elements.pop()


async def choose(user: User, marker: str, value: Any) -> None:
    """Moves a slider, or chooses from a list, and lets the page send what that changes."""
    element(user, marker).value = value
    await asyncio.sleep(0)


async def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for a condition, and no longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
