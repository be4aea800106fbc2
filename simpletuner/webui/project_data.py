"""The lists of data sets of projects: by default ``NAME-data.json`` beside ``NAME.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.configuration.loading import plain_names
from simpletuner.configuration.paths import kind_of
from simpletuner.webui.confinement import Refused, inside
from simpletuner.webui.files import version_of
from simpletuner.webui.secrets import restore
from simpletuner.webui.site import Site
from simpletuner.webui.stored import (
    ProjectError,
    changing,
    check_version,
    content_if_any,
    parsed,
    parsed_if_possible,
    plain_json,
    put,
    shown,
)

SUFFIX = "-data"


@dataclass(frozen=True)
class DatasetFile:
    """A list of data sets as its file has it; no entries and the version "" for a file that is still to be made."""

    path: Path
    entries: list[dict[str, Any]]
    version: str


def read_datasets(site: Site, values: Mapping[str, Any]) -> DatasetFile | None:
    """The list of data sets that a configuration names; None if it names none.

    Raises :class:`~simpletuner.webui.confinement.Refused` for a file outside of the roots, and
    :class:`~simpletuner.webui.stored.ProjectError` for one that holds no such list.
    """
    named = named_list(values)
    if named is None:
        return None
    path = inside(named, site.roots)
    content = content_if_any(path)
    if content is None:
        return DatasetFile(path, [], "")
    entries = parsed(path, content)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ProjectError(f"{shown(path)} holds no list of data sets.")
    return DatasetFile(path, entries, version_of(content))


def save_datasets(
    site: Site, path: Path | str, entries: Sequence[Mapping[str, Any]], version: str | None
) -> DatasetFile:
    """Replace a list of data sets, or make it; masked values stay what the file has.

    :class:`~simpletuner.webui.stored.Conflict` if ``version`` isn't None and not that of the file any more ("": there
    is none yet). Raises as :func:`read_datasets` besides.
    """
    file = inside(path, site.roots)
    if file.suffix != ".json" or kind_of(file) == "folder":
        raise ProjectError(f"{shown(file)} can be no list of data sets: name a file that ends in .json.")
    with changing(file.parent):
        content = content_if_any(file)
        check_version(file, content, version)
        before = parsed_if_possible(file, content)
        if isinstance(before, dict):
            raise ProjectError(f"{shown(file)} holds a configuration, and is kept. Choose another name.")
        stored = restore(plain_json(file, [dict(entry) for entry in entries]), before)
        return DatasetFile(file, stored, put(file, stored))


def own_datasets(site: Site, name: str) -> Path:
    """Where a project's list of data sets lies by default."""
    return site.configs / f"{name}{SUFFIX}.json"


def as_option(path: Path) -> str:
    """A path as a configuration names it: relative to the working directory, where the trainer starts, if inside."""
    here = Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def named_list(values: Mapping[str, Any]) -> str | None:
    """The file that ``data_backend_config`` names, if it does."""
    named = plain_names(values).get("data_backend_config")
    return named if isinstance(named, str) and named else None


def list_of(site: Site, values: Mapping[str, Any]) -> Path | None:
    """The list of data sets that a configuration names, where it exists in the roots."""
    try:
        named = named_list(values)
        found = None if named is None else inside(named, site.roots)
    except Refused:
        return None
    return found if found is not None and kind_of(found) == "file" else None
