"""Telling local paths from names on a hub."""

from __future__ import annotations

from pathlib import Path


def local_path(text: str) -> Path:
    """The path that an option names; "~" is the home folder."""
    return Path(text).expanduser()


def looks_like_path(text: str) -> bool:
    """Whether a text can only be a local path: hub names are "name" or "org/name"."""
    return text.startswith(("/", "./", "../", "~")) or text.count("/") > 1 or "\\" in text or local_path(text).exists()


def missing_path(text: str) -> tuple[str, str] | None:
    """Message and mend for a path that does not exist; None if it does."""
    if local_path(text).exists():
        return None
    return f"no such file or folder: {text!r}", "Check the path; relative ones start at the working directory."
