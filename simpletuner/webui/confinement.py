"""Paths stay inside the folders that the server may touch, however they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from simpletuner.configuration.paths import local_path

MOST_PATH, MOST_NAME = 4096, 255  # bytes; the limits of Linux
_WINDOWS = re.compile(r"^[A-Za-z]:|\\")


class Refused(ValueError):
    """A path outside of the roots, or a name that can be none."""


def inside(path: Path | str, roots: Sequence[Path]) -> Path:
    """The path, resolved through all symlinks, if it lies in one of the roots; :class:`Refused` otherwise.

    Relative paths start at the working directory and "~" is the home folder, as for the trainer. The path need not
    exist. Use what is returned, and ask again at every use: what lies there can become a symlink later.
    """
    text = str(path)
    if not text.strip() or text != text.replace("\0", ""):
        raise Refused(f"{text!r} can be no path. Name a file or folder.")
    if _WINDOWS.search(text):
        raise Refused(f"{text!r} is written as on Windows. Write / between folders.")
    try:
        size, longest = len(text.encode()), max(len(part.encode()) for part in text.split("/"))
        if size > MOST_PATH or longest > MOST_NAME:
            raise Refused(f"A path of {size} bytes is too long: {text[:40]!r}... Shorten it.")
        resolved = local_path(text).resolve()
    except Refused:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symlinks, or characters that no path has
        raise Refused(f"{text!r} can be no path ({error}). Correct it.") from error
    if not any(resolved.is_relative_to(root) for root in roots):
        allowed = ", ".join(repr(str(root)) for root in roots)
        raise Refused(f"{text!r} lies outside of {allowed}. Choose a path in there, or start the server with --root.")
    return resolved
