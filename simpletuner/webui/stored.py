"""JSON files of a site: read with every doubt said in words, changed by one writer at a time and as a whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from simpletuner.configuration.json_files import parse_json, repeated_names
from simpletuner.configuration.paths import kind_of
from simpletuner.webui.files import MOST_BYTES, only_writer, read_small, replace_file, version_of

T = TypeVar("T")

MOST_DEPTH = 64
"""Lists and objects in each other; what is nested deeper is no configuration."""


class ProjectError(ValueError):
    """What can't be done with a project, and why; it names the file."""


class NotFound(ProjectError):
    """There is no such project, example or file."""


class Taken(ProjectError):
    """A name that is in use already."""


class Conflict(ProjectError):
    """The file changed on disk meanwhile; ``version`` is the one that is there now ("" for none)."""

    def __init__(self, message: str, version: str) -> None:
        super().__init__(message)
        self.version = version


def content_of(path: Path) -> bytes:
    """The bytes of a small file. Raises :class:`NotFound` or :class:`ProjectError`."""
    try:
        return read_small(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"There is no {shown(path)}.") from error
    except OSError as error:
        raise ProjectError(f"{shown(path)} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ProjectError(f"{shown(path)} {error}.") from error


def content_if_any(path: Path) -> bytes | None:
    """As :func:`content_of`; None if there is no such file."""
    try:
        return content_of(path)
    except NotFound:
        return None


def parsed(path: Path, content: bytes) -> Any:
    """What JSON bytes hold; :class:`ProjectError` tells the file and the place where they are broken."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(repeated_names(pairs))
        return dict(pairs)

    try:
        values = parse_json(content.decode("utf-8-sig"), unique)
    except UnicodeDecodeError as error:
        raise ProjectError(f"{shown(path)} is not UTF-8 text. Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ProjectError(f"{shown(path)} is not valid JSON at {place}: {error.msg}. Correct it there.") from error
    except ValueError as error:
        raise ProjectError(f"{shown(path)} can't be read: {error}.") from error
    if repeated:
        raise ProjectError(f"{shown(path)} has {repeated[0]!r} more than once. Keep one of them.")
    return plain_json(path, values)


def parsed_if_possible(path: Path, content: bytes | None) -> Any:
    """As :func:`parsed`; None for no file, or a broken one."""
    try:
        return None if content is None else parsed(path, content)
    except ProjectError:
        return None


def check_version(path: Path, content: bytes | None, version: str | None) -> None:
    """Raises :class:`Conflict` if ``version`` isn't None and not that of the content; that of no file is ""."""
    actual = "" if content is None else version_of(content)
    if version is not None and version != actual:
        how = "was deleted" if content is None else "changed on disk"
        raise Conflict(f"{shown(path)} {how} since it was read.", actual)


def plain_json(path: Path, values: T) -> T:
    """The values, if they can be sent and written: :class:`ProjectError` for what JSON has no form for."""
    level: list[Any] = [values]
    for _ in range(MOST_DEPTH):
        names = [name for value in level if isinstance(value, dict) for name in value]
        for value in (*level, *names):
            # Also an integer that no float holds, which is read as infinite.
            if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
                raise ProjectError(f"{shown(path)}: {str(value)[:40]} is no number of JSON. Write another.")
            if isinstance(value, str) and value.encode("utf-8", "replace").decode() != value:
                raise ProjectError(f"{shown(path)}: {shown(value)[:40]!r} has half a character. Write it anew.")
        parts = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [item for part in parts if isinstance(part, list) for item in part]
        if not level:
            return values
    raise ProjectError(f"{shown(path)} is nested too deeply. A configuration needs {MOST_DEPTH} levels at most.")


def put(path: Path, values: Any) -> str:
    """Write values as a JSON file; returns its version. Raises ``OSError`` or :class:`ProjectError`."""
    content = (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if len(content) > MOST_BYTES:
        raise ProjectError(f"{shown(path)} would be larger than {MOST_BYTES // 2**20} MiB. Shorten it.")
    replace_file(path, content)
    return version_of(content)


def free(path: Path) -> Path:
    """The path, if nothing is there; :class:`Taken` otherwise."""
    if path.is_symlink() or kind_of(path):
        raise Taken(f"{shown(path)} is there already. Choose another name.")
    return path


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """While files of a folder are changed: nobody else changes one, and what the disk refuses is said in words."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            yield
    except OSError as error:
        raise ProjectError(f"{shown(error.filename or folder)} can't be written: {error.strerror}.") from error


def shown(path: object) -> str:
    """A path as text that can be sent: names that aren't UTF-8 have a sign of replacement."""
    return str(path).encode("utf-8", "replace").decode()
