"""Telling local paths from names on a hub."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator


def local_path(text: str) -> Path:
    """The path that an option names; "~" is the home folder."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # "~name" of nobody, or what can be no name
        return Path(text)


def kind_of(path: Path) -> Literal["file", "folder", ""]:
    """What is there: a folder, or something else ("file"); "" for nothing, or nothing that can be looked at."""
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except (OSError, ValueError):  # no permission, too long a name, characters that no name has
        return ""


def with_home(text: str) -> str:
    """The text of a path, in which a leading "~" is the home folder; other texts stay as they are."""
    return str(local_path(text)) if text.startswith("~") else text


# For options that are paths: what a shell doesn't expand, as in a JSON file, must not become a folder called "~".
PathText = Annotated[str, AfterValidator(with_home)]


def looks_like_path(text: str) -> bool:
    """Whether a text can only be a local path: hub names are "name" or "org/name"."""
    return (
        text.startswith(("/", "./", "../", "~"))
        or text.count("/") > 1
        or "\\" in text
        or kind_of(local_path(text)) != ""
    )


def missing_path(text: str) -> tuple[str, str] | None:
    """Message and mend for a path that does not exist or can't be reached; None if it is there."""
    try:
        local_path(text).stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"no such file or folder: {text!r}", "Check the path; relative ones start at the working directory."
    except OSError as error:
        return f"{text!r} can't be reached: {error.strerror}", "Check the path and its permissions."
    except ValueError:
        return f"{text!r} can be no path", "Check its characters."
    return None


def not_a_folder(text: str) -> tuple[str, str] | None:
    """Message and mend for a folder that can't be made because a file is in its place; None if it can."""
    folder = local_path(text)
    file = next((path for path in (folder, *folder.parents) if kind_of(path) == "file"), None)
    if not text or file is None:
        return None if text else ("is empty", "Name a folder, or remove it.")
    shown = "is a file" if file == folder else f"lies in {str(file)!r}, which is a file"
    return f"{text!r} {shown}", "Name a folder."
