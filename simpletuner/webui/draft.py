"""A project that is being edited, and what is wrong with it. Free of pages: these are plain values."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.configuration.aliases import resolve_aliases
from simpletuner.configuration.checks import find_family
from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import check_entries, entries_of
from simpletuner.configuration.dependencies import unmet_dependency
from simpletuner.configuration.family import Family
from simpletuner.configuration.fields import OptionInfo, describe_all
from simpletuner.configuration.paths import kind_of, local_path
from simpletuner.configuration.problems import Problem
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.checking import check_inside, datasets_inside
from simpletuner.webui.projects import Project
from simpletuner.webui.site import Site

OPTIONS: Mapping[str, OptionInfo] = {info.name: info for info in describe_all(Config)}

DELAY = 0.3
"""Seconds without a change after which a draft is examined."""


class Draft:
    """The values of a project as its file would have them; a name that is not set has its default.

    ``values`` are as in the file, also under the other names of options and names that are no options.
    """

    def __init__(self, project: Project) -> None:
        self.name = project.name
        self.path = project.path
        self.values: dict[str, Any] = copy.deepcopy(project.values)
        self.settle(project)

    def settle(self, project: Project) -> None:
        """Know the file as it is now on disk; what has been changed since stays changed."""
        self.version = project.version
        self._saved = copy.deepcopy(project.values)

    def get(self, name: str) -> Any:
        """The value of an option, also where it stands under another of its names; None where it isn't set."""
        if name in self.values or name not in OPTIONS or not OPTIONS[name].aliases:
            return self.values.get(name)
        return resolve_aliases(self.values, [OPTIONS[name]])[0].get(name)

    def set(self, name: str, value: Any) -> None:
        """Set an option; what stands under its other names gives way."""
        self._drop_aliases(name)
        self.values[name] = value

    def unset(self, name: str) -> None:
        """Give an option its default: its name is left out of the file."""
        self._drop_aliases(name)
        self.values.pop(name, None)

    def replace(self, values: Mapping[str, Any]) -> None:
        """Take other values for all of them, such as from an edited text."""
        self.values = copy.deepcopy(dict(values))

    @property
    def changed(self) -> bool:
        """Whether saving would change the file."""
        return not same(self.values, self._saved)

    def was_set(self, name: str) -> bool:
        """Whether the file has the option."""
        return name in self._saved

    def _drop_aliases(self, name: str) -> None:
        for alias in OPTIONS[name].aliases if name in OPTIONS else ():
            self.values.pop(alias.partition("=")[0], None)


def same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON, where true is not 1 and the order of names means nothing."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)


@dataclass(frozen=True)
class Examination:
    """What is known of a draft: its valid part as a configuration, its problems, and its model's family, if any.

    ``unmet`` says of each option without effect why it has none, such as "crepa_enabled is false".
    """

    config: Config
    problems: list[Problem]
    family: Family | None
    unmet: dict[str, str]

    def of(self, option: str) -> list[Problem]:
        """The problems of an option, also of its other names."""
        names = {option, *(alias.partition("=")[0] for alias in OPTIONS[option].aliases)}
        return [problem for problem in self.problems if problem.option in names]

    def fits(self, info: OptionInfo) -> bool:
        """Whether the option is for models of this family; without a family every option may be."""
        return self.family is None or self.family.suits(info.only_for)

    def offers(self, info: OptionInfo) -> bool:
        """Whether the option fits the family and has an effect."""
        return info.name not in self.unmet and self.fits(info)


def examine(site: Site, values: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]] | None = None) -> Examination:
    """Check values as ``simpletuner check`` checks a file, without looking outside of the site's roots.

    ``datasets`` is the list of data sets while that is being edited: it is checked instead of what lies at
    ``data_backend_config``. Reads the disk, so it takes some milliseconds.
    """
    config, problems = check_inside(site, values)
    family = find_family(config, FAMILIES)
    if datasets is not None:
        problems = _with_datasets(site, config, family, problems, datasets)
    reasons = {name: unmet_dependency(name, config, OPTIONS) for name in OPTIONS}
    unmet = {name: reason for name, reason in reasons.items() if reason is not None}
    return Examination(config, list(dict.fromkeys(problems)), family, unmet)


def _with_datasets(
    site: Site,
    config: Config,
    family: Family | None,
    problems: list[Problem],
    datasets: Sequence[Mapping[str, Any]],
) -> list[Problem]:
    """The problems, in which those of the list on disk, or of its absence, give way to those of the edited list."""
    path = local_path(config.data_backend_config)
    of_file = {str(path), config.data_backend_config} | (set() if kind_of(path) else {"data_backend_config"})
    kept = [problem for problem in problems if problem.option not in of_file and dataset_place(problem, path) is None]
    entries, found = entries_of([dict(entry) for entry in datasets], path)
    return kept + datasets_inside(site, datasets, path, found + check_entries(entries, config, family))


def dataset_place(problem: Problem, path: Path) -> tuple[str, str] | None:
    """The name of the data set and the option that a problem of a list of data sets is about; None for any other."""
    start = f"{path.name}: "
    if not path.name or not problem.option.startswith(start):
        return None
    entry, _, option = problem.option.removeprefix(start).rpartition(".")
    if entry.endswith(".video"):
        entry, option = entry.removesuffix(".video"), f"video.{option}"
    return entry, option


class Examiner:
    """Examines again and again what is being edited, off the event loop, once it has been still for a moment.

    Args:
        look: takes what is there, on the event loop, and gives the examination of it, for a thread.
        show: gets each result that is still of the last state, on the event loop.
        start: makes a task of a coroutine.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[Callable[[], Examination]]],
        show: Callable[[Examination], None],
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = asyncio.create_task,
    ) -> None:
        self._look, self._show, self._start = look, show, start
        self._changes = 0
        self._task: asyncio.Task[None] | None = None

    def changed(self) -> None:
        """Something was edited: examine it soon."""
        self._changes += 1
        if self._task is None or self._task.done():
            self._task = self._start(self._run())

    async def _run(self) -> None:
        seen = -1
        while seen != self._changes:
            seen = self._changes
            await asyncio.sleep(DELAY)
            if seen != self._changes:
                continue
            found = await asyncio.to_thread(await self._look())
            if seen == self._changes:
                self._show(found)

    def close(self) -> None:
        """Examine nothing any more."""
        if self._task is not None:
            self._task.cancel()
