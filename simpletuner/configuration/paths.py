"""Telling local paths from names on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def local_path(text: str) -> Path:
    """The path that an option names; "~" is the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~name" of nobody
        return Path(text)


def with_home(text: str) -> str:
    """The text of a path, in which a leading "~" is the home folder; other texts stay as they are."""
    return str(local_path(text)) if text.startswith("~") else text


# For options that are paths: what a shell doesn't expand, as in a JSON file, must not become a folder called "~".
PathText = Annotated[str, AfterValidator(with_home)]


def looks_like_path(text: str) -> bool:
    """Whether a text can only be a local path: hub names are "name" or "org/name"."""
    return text.startswith(("/", "./", "../", "~")) or text.count("/") > 1 or "\\" in text or local_path(text).exists()


def missing_path(text: str) -> tuple[str, str] | None:
    """Message and mend for a path that does not exist; None if it does."""
    if local_path(text).exists():
        return None
    return f"no such file or folder: {text!r}", "Check the path; relative ones start at the working directory."
