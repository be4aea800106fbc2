"""Reading JSON that a stranger may have written: whatever it holds, nothing but ``ValueError`` comes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_MOST_DIGITS = 19  # of an integer of 64 bits


def parse_json(text: str, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What a JSON text holds; integers beyond 64 bits become floats, as no option takes them.

    Raises ``ValueError`` (``json.JSONDecodeError``, which tells the place, for broken syntax).
    """
    try:
        return json.loads(text, object_pairs_hook=pairs_hook, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def repeated_names(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    """The names that stand more than once in an object; for a hook of :func:`parse_json`."""
    return [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``OSError`` or ``ValueError``."""
    content = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits.lstrip("-")) <= _MOST_DIGITS else float(digits)
