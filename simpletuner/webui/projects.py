"""The projects of a site: configurations ``NAME.json`` in one folder, each with its list of data sets.

The list is by default ``NAME-data.json`` beside the configuration: a JSON list, and so no project itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simpletuner.configuration.config import Config
from simpletuner.configuration.fields import by_place, describe_all
from simpletuner.configuration.json_files import parse_json
from simpletuner.configuration.loading import plain_names
from simpletuner.configuration.paths import kind_of
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.confinement import Refused, inside
from simpletuner.webui.files import replace_file, sync_folder, version_of
from simpletuner.webui.names import checked_name
from simpletuner.webui.project_data import (
    DatasetFile,
    as_option,
    list_of,
    named_list,
    own_datasets,
    read_datasets,
    save_datasets,
)
from simpletuner.webui.records import rename_in_records
from simpletuner.webui.secrets import restore
from simpletuner.webui.site import Site, examples_folder
from simpletuner.webui.stored import (
    Conflict,
    NotFound,
    ProjectError,
    Taken,
    changing,
    check_version,
    content_if_any,
    content_of,
    free,
    parsed,
    parsed_if_possible,
    plain_json,
    put,
    shown,
)

__all__ = [
    "Conflict",
    "DatasetFile",
    "Example",
    "NotFound",
    "Project",
    "ProjectError",
    "Summary",
    "Taken",
    "as_option",
    "checked_name",
    "create_project",
    "delete_project",
    "duplicate_project",
    "list_examples",
    "list_projects",
    "own_datasets",
    "read_datasets",
    "read_project",
    "rename_project",
    "save_datasets",
    "save_project",
]


@dataclass(frozen=True)
class Summary:
    """A line of the list of projects; ``problem`` says why a file can't be opened, ``modified`` is a Unix time.

    ``method`` is REPA, CREPA, U-REPA, LayerSync, or None for a baseline.
    """

    name: str
    family: str
    method: str | None
    modified: float
    problem: str | None


@dataclass(frozen=True)
class Project:
    """A configuration as its file has it, names without "--"; ``version`` changes with the file's content."""

    name: str
    path: Path
    values: dict[str, Any]
    version: str


@dataclass(frozen=True)
class Example:
    """A configuration that new projects can be made from."""

    name: str
    family: str
    method: str | None


def list_projects(site: Site) -> list[Summary]:
    """Every configuration of the folder, by name; also those that can't be read, with the reason."""
    files = sorted(site.configs.glob("*.json"), key=lambda path: path.name.casefold())
    found = [_summary(site, path) for path in files if not path.name.startswith(".") and kind_of(path) != "folder"]
    return [summary for summary in found if summary is not None]


def list_examples() -> list[Example]:
    """The examples that name a model family, in the order of the families; a family's general ones before recipes."""
    found = []
    for path in sorted(examples_folder().glob("*.json")):
        content = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("model_family") in FAMILIES:
            found.append(Example(path.stem, content["model_family"], _method(content)))
    families = list(FAMILIES)
    return sorted(found, key=lambda known: (families.index(known.family), not known.name.startswith(known.family)))


def read_project(site: Site, name: str) -> Project:
    """The project of this name. Raises :class:`NotFound`, or :class:`ProjectError` with what is wrong."""
    path = _path(site, name)
    content = content_of(path)
    return Project(name, path, _object(path, content), version_of(content))


def create_project(
    site: Site, name: str, example: str | None = None, *, values: Mapping[str, Any] | None = None
) -> Project:
    """A new project: empty, of these values, or a copy of an example with its list of data sets."""
    if example is None:
        given = plain_json(_path(site, name), plain_names(values or {}))
        return _create(site, name, _own_folders(site, name) | restore(given, {}), None)
    if example not in {known.name for known in list_examples()}:
        raise NotFound(f"There is no example {example!r}.")
    source = examples_folder() / f"{example}.json"
    copied = _object(source, content_of(source)) | _own_folders(site, name)
    return _create(site, name, copied, examples_folder() / Path(named_list(copied) or "").name)


def save_project(site: Site, name: str, values: Mapping[str, Any], version: str | None) -> Project:
    """Replace a project's values; returns it with its new version.

    Options are written in their order, names that are no options after them as they came; what is masked keeps the
    file's value. :class:`Conflict` if ``version`` isn't None and not that of the file any more.
    """
    path = _path(site, name)
    with changing(site.configs):
        content = content_if_any(path)
        check_version(path, content, version)
        before = parsed_if_possible(path, content)
        kept = plain_names(before) if isinstance(before, dict) else {}
        return _put(path, name, restore(plain_json(path, plain_names(values)), kept))


def duplicate_project(site: Site, name: str, new: str) -> Project:
    """A copy under another name, with a list of data sets and an output folder of its own."""
    values = read_project(site, name).values
    output = values.get("output_dir")
    folders = _own_folders(site, new)
    if isinstance(output, str) and Path(output).name == name:
        folders = {"output_dir": str(Path(output).with_name(new))}
    listed = list_of(site, values)
    return _create(site, new, values | folders, listed if listed == own_datasets(site, name) else None)


def rename_project(site: Site, name: str, new: str) -> Project:
    """Give a project another name; its runs go along, and its list of data sets if no other project names it.

    Its output folder stays what it is, since runs lie there.
    """
    if new == name:
        return read_project(site, name)
    _path(site, new)
    with changing(site.configs):
        project = read_project(site, name)
        target, listed = free(site.configs / f"{new}.json"), _own_list(site, name, project.values)
        if listed is not None:
            moved = free(own_datasets(site, new))
            listed.rename(moved)
            try:
                _put(project.path, name, project.values | {"data_backend_config": as_option(moved)})
            except (OSError, ProjectError):
                moved.rename(listed)
                raise
        (site.configs / f"{name}.json").rename(target)
        sync_folder(site.configs)
    try:
        if kind_of(site.runs) == "folder":
            with changing(site.runs):
                rename_in_records(site.runs, name, new)
    except ProjectError:
        with changing(site.configs):
            target.rename(site.configs / f"{name}.json")
        raise
    return read_project(site, new)


def delete_project(site: Site, name: str) -> None:
    """Delete a project's file, and its list of data sets if no other project names it; never what runs wrote."""
    path = _path(site, name)
    with changing(site.configs):
        values = parsed_if_possible(path, content_of(path))
        listed = _own_list(site, name, values) if isinstance(values, dict) else None
        (site.configs / f"{name}.json").unlink()
        if listed is not None:
            listed.unlink()


def _path(site: Site, name: str) -> Path:
    """The file of a project, resolved through symlinks."""
    try:
        return inside(site.configs / f"{checked_name(name)}.json", site.roots)
    except Refused as error:
        raise ProjectError(str(error)) from error


def _object(path: Path, content: bytes) -> dict[str, Any]:
    values = parsed(path, content)
    if not isinstance(values, dict):
        raise ProjectError(f"{shown(path)} holds no JSON object.")
    return plain_names(values)


def _summary(site: Site, path: Path) -> Summary | None:
    """The line of a file; None for a list, which is no project, and for a file that is gone meanwhile."""
    try:
        modified = path.lstat().st_mtime
        file = inside(path, site.roots)
        content = content_of(file)
        if isinstance(parsed_if_possible(file, content), list):
            return None
        values = _object(file, content)
        checked_name(path.stem)
    except FileNotFoundError:
        return None
    except (ProjectError, Refused) as error:
        return Summary(shown(path.stem), "", None, modified, shown(error))
    family = values.get("model_family")
    return Summary(path.stem, family if isinstance(family, str) else "", _method(values), modified, None)


def _method(values: Mapping[str, Any]) -> str | None:
    family = FAMILIES.get(str(values.get("model_family")))
    if values.get("crepa_enabled") is True:
        return "CREPA" if family is not None and family.media == "video" else "REPA"
    if values.get("urepa_enabled") is True:
        return "U-REPA"
    return "LayerSync" if values.get("layersync_enabled") is True else None


def _own_folders(site: Site, name: str) -> dict[str, Any]:
    """Options that keep what a new project writes apart from others', and inside the roots."""
    output = f"output/{checked_name(name)}"
    if any(Path.cwd().resolve().is_relative_to(root) for root in site.roots):
        return {"output_dir": output}
    return {"output_dir": str(site.roots[0] / output), "cache_dir": str(site.roots[0] / "cache")}


def _own_list(site: Site, name: str, values: Mapping[str, Any]) -> Path | None:
    """The list of data sets that bears a project's name, if this project names it and no other does."""
    own = list_of(site, values)
    if own is None or own != own_datasets(site, name):
        return None
    others = [other.name for other in list_projects(site) if other.name != name and other.problem is None]
    return None if any(list_of(site, read_project(site, other).values) == own for other in others) else own


def _create(site: Site, name: str, values: dict[str, Any], listed: Path | None) -> Project:
    """A new project, with a copy of a list of data sets if that is there."""
    path = _path(site, name)
    with changing(site.configs):
        free(site.configs / f"{name}.json")
        content = content_if_any(listed) if listed is not None and kind_of(listed) == "file" else None
        if content is None:
            return _put(path, name, values)
        own = free(own_datasets(site, name))
        try:
            replace_file(own, content)
            return _put(path, name, values | {"data_backend_config": as_option(own)})
        except (OSError, ProjectError):
            own.unlink(missing_ok=True)
            raise


def _put(path: Path, name: str, values: Mapping[str, Any]) -> Project:
    places = _places()
    ordered = dict(sorted(values.items(), key=lambda item: places.get(item[0], len(places))))
    return Project(name, path, ordered, put(path, ordered))


@cache
def _places() -> dict[str, int]:
    """The place of every option, also under its other names, in the order in which people look for them."""
    options = [option for members in by_place(describe_all(Config)).values() for option in members]
    names = [[option.name, *(alias.partition("=")[0] for alias in option.aliases)] for option in options]
    return {name: place for place, same in enumerate(names) for name in same}
