"""The files of a project that is being edited: its draft, its list of data sets, and what became of both on disk."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from simpletuner.configuration.loading import plain_names
from simpletuner.webui.confinement import Refused
from simpletuner.webui.draft import Draft, same
from simpletuner.webui.projects import (
    DatasetFile,
    Project,
    ProjectError,
    read_datasets,
    read_project,
    save_datasets,
    save_project,
)
from simpletuner.webui.site import Site

Stamp = tuple[int, int] | None
OnDisk = Literal["as before", "as here", "changed", "gone"]


class DatasetDraft:
    """A list of data sets that is being edited.

    ``named`` is what ``data_backend_config`` says. ``reason`` says why the list can't be edited, "" if it can.
    """

    def __init__(self, named: str, file: DatasetFile | None, reason: str = "") -> None:
        self.named = named
        self.reason = reason
        self.path: Path | None = None if file is None else file.path
        self.version = "" if file is None else file.version
        self.entries: list[dict[str, Any]] = [] if file is None else [plain_names(entry) for entry in file.entries]
        self._saved = copy.deepcopy(self.entries)

    def settle(self, file: DatasetFile) -> None:
        """Know the file as it is now on disk; what has been changed since stays changed."""
        self.version = file.version
        self._saved = [plain_names(entry) for entry in copy.deepcopy(file.entries)]

    @property
    def editable(self) -> bool:
        """Whether there is a list, there or still to be written, that may be written."""
        return self.path is not None and not self.reason

    @property
    def changed(self) -> bool:
        """Whether saving would change the file."""
        return self.editable and not same(self.entries, self._saved)


def read_draft(site: Site, values: Mapping[str, Any]) -> DatasetDraft:
    """The list that a configuration names, and if there is none to edit, why."""
    named = named_list(values)
    try:
        return DatasetDraft(named, read_datasets(site, values))
    except (ProjectError, Refused) as error:
        return DatasetDraft(named, None, str(error))


def named_list(values: Mapping[str, Any]) -> str:
    """The file that a configuration names as its list of data sets; "" for none."""
    named = values.get("data_backend_config")
    return named if isinstance(named, str) else ""


def free_name(entries: Sequence[Mapping[str, Any]], wanted: str) -> str:
    """The name, or with a number behind it if a data set has it already."""
    taken = {entry.get("id") for entry in entries}
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in range(1, len(entries) + 2))
    return next(name for name in names if name not in taken)


class Workspace:
    """A project open for editing. Raises of its methods: ``ProjectError``, ``Conflict``, ``Refused``."""

    def __init__(self, site: Site, name: str) -> None:
        """Opens the project; reads the disk."""
        self.site = site
        self._stamp: Stamp = None
        self._open(*_read(site, name))

    def _open(self, project: Project, datasets: DatasetDraft, now: Stamp) -> None:
        self.draft = Draft(project)
        self.datasets = datasets
        self._lists = {datasets.named: datasets}
        self._stamp = now

    @property
    def changed(self) -> bool:
        """Whether saving would change a file."""
        return self.draft.changed or self.datasets.changed

    @property
    def edited_entries(self) -> list[dict[str, Any]] | None:
        """The list of data sets as it would be saved; None if that is what the disk has."""
        return copy.deepcopy(self.datasets.entries) if self.datasets.changed else None

    async def follow(self) -> bool:
        """Turn to the list that the draft names now; edits of another one stay until then. Says if it is another."""
        name = named_list(self.draft.values)
        if name == self.datasets.named:
            return False
        if name not in self._lists:
            self._lists[name] = await asyncio.to_thread(read_draft, self.site, copy.deepcopy(self.draft.values))
        self.datasets = self._lists[name]
        return True

    async def save(self, *, overwrite: bool = False) -> bool:
        """Write what was changed; with ``overwrite`` all of it, whatever is on disk. Says if anything was written.

        What is edited meanwhile stays changed.
        """
        draft, datasets, written = self.draft, self.datasets, False
        if draft.changed or overwrite:
            values, version = copy.deepcopy(draft.values), None if overwrite else draft.version
            draft.settle(await asyncio.to_thread(save_project, self.site, draft.name, values, version))
            self._stamp = await asyncio.to_thread(stamp, draft.path)
            written = True
        if datasets.path is not None and (datasets.changed or (overwrite and datasets.editable)):
            entries, known = copy.deepcopy(datasets.entries), None if overwrite else datasets.version
            datasets.settle(await asyncio.to_thread(save_datasets, self.site, datasets.path, entries, known))
            written = True
        return written

    async def reload(self) -> None:
        """Take the files as they are on disk; what was changed here is gone."""
        self._open(*await asyncio.to_thread(_read, self.site, self.draft.name))

    def look_at_disk(self) -> OnDisk:
        """What became of the project's file since the last look. Cheap while nothing did."""
        now = stamp(self.draft.path)
        if now == self._stamp:
            return "as before"
        self._stamp = now
        if now is None:
            return "gone"
        try:
            version = read_project(self.site, self.draft.name).version
        except (ProjectError, Refused):
            return "changed"
        return "as here" if version == self.draft.version else "changed"


def _read(site: Site, name: str) -> tuple[Project, DatasetDraft, Stamp]:
    path = read_project(site, name).path
    before = stamp(path)  # looked at first, so that a change in between is seen later
    project = read_project(site, name)
    return project, read_draft(site, project.values), before


def stamp(path: Path) -> Stamp:
    """What changes whenever a file is written, and costs little to look at; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size
