"""The Run tab of a project: check, build caches, start, stop, resume; below, its latest run as it goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nicegui import run as background
from nicegui import ui

from simpletuner.configuration.problems import Problem
from simpletuner.webui.checking import check_inside
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.pages.live_view import LiveView, live_view
from simpletuner.webui.pages.run_controls import Actions, StopButtons, threaded
from simpletuner.webui.pages.snapshot import Snapshot
from simpletuner.webui.projects import read_project
from simpletuner.webui.runs import Run, can_resume, is_active, list_runs, start_run
from simpletuner.webui.site import Site

# Seconds between two looks for a run that was started elsewhere: in another tab, or through the API.
LOOK_FOR_RUNS = 3.0

Save = Callable[[], Awaitable[bool]]


@dataclass(frozen=True)
class Latest:
    """A project's run to show (one that goes, else the one that went last), and whether a training can be resumed."""

    run: Run | None
    active: bool
    resumable: bool


def latest(site: Site, project: str) -> Latest:
    """Looks through the records of runs; it reads files."""
    runs = [run for run in list_runs(site) if run.project == project]
    if not runs:
        return Latest(None, False, False)
    shown = max(runs, key=lambda run: (is_active(run), run.started if run.ended is None else run.ended))
    training = next((run for run in runs if run.command == "train"), None)
    active = is_active(shown)
    return Latest(shown, active, not active and training is not None and can_resume(training))


def problems_of(site: Site, project: str) -> list[Problem]:
    """What `simpletuner check` says of a project's file.

    Raises:
        ProjectError: the file can't be read.
    """
    return check_inside(site, read_project(site, project).values)[1]


def run_panel(site: Site, look: Look, project: str, save: Save) -> None:
    """Builds the controls and the live view of the project's latest run.

    Args:
        save: saves the draft, so that what runs is what one sees; False where it could not.
    """
    RunPanel(site, look, project, save)


class RunPanel:
    """The elements of the panel. What runs is found in the records each time, never remembered."""

    def __init__(self, site: Site, look: Look, project: str, save: Save) -> None:
        self._site, self._look, self._project, self._save = site, look, project, save
        self._view: LiveView | None = None
        self._run_id: str | None = None
        _ = look.words
        with ui.row().classes("w-full items-center").style("gap: 0.5rem"):
            self._check = tagged(ui.button(_("Check"), icon="fact_check", on_click=self.check), "run_check")
            self._caches = tagged(ui.button(_("Build caches"), icon="inventory_2", on_click=self.cache), "run_caches")
            self._start = tagged(ui.button(_("Start"), icon="play_arrow", on_click=self.start), "run_start")
            self._resume = tagged(ui.button(_("Resume"), icon="play_arrow", on_click=self.resume), "run_resume")
            stop_place = ui.row().style("gap: 0.5rem")
        self._check.props("outline")
        self._caches.props("outline")
        self._actions = Actions(look)
        with stop_place:
            self._stop = StopButtons(site, look, self._actions, self._refresh)
        self._offer(Latest(None, False, False))
        self._empty = tagged(ui.label(_("This project has not been run yet.")), "run_none").classes("faint")
        self._empty.set_visibility(False)
        self._place = ui.column().classes("w-full")
        self.timer = ui.timer(LOOK_FOR_RUNS, self.look_for_runs)

    async def look_for_runs(self) -> None:
        """Finds the run to show, and brings everything up to date."""
        found = await background.io_bound(latest, self._site, self._project)
        if found is None:  # the server is about to end
            return
        self._offer(found)
        self._empty.set_visibility(found.run is None)
        if found.run is None or found.run.id != self._run_id:
            self._stop.hide()
            self._place.clear()
            self._run_id = None if found.run is None else found.run.id
            self._view = None
            if found.run is not None:
                with self._place:
                    self._view = live_view(
                        self._site, self._look, found.run.id, resume=self.resume, on_snapshot=self._follow
                    )
        elif self._view is not None and found.active != self._view.active:
            await self._view.refresh()  # stopped or resumed just now: nobody waits for the next tick

    async def check(self) -> None:
        """Saves, and lists what the check says."""
        problems: list[Problem] = []

        async def look() -> bool:
            problems.extend(await background.io_bound(problems_of, self._site, self._project) or [])
            return True

        if await self._actions.do(self._save, look):
            self._actions.list(problems)
            if not problems:
                ui.notify(self._look.words("No problems found."), type="positive")

    async def cache(self) -> None:
        """Saves, and builds the caches without training."""
        await self._run(lambda: start_run(self._site, self._project, "cache"))

    async def start(self) -> None:
        """Saves, and trains from the first step."""
        await self._run(lambda: start_run(self._site, self._project))

    async def resume(self) -> None:
        """Saves, and trains on from the latest checkpoint."""
        await self._run(lambda: start_run(self._site, self._project, resume=True))

    async def _run(self, begin: Callable[[], Run]) -> None:
        if await self._actions.do(self._save, lambda: threaded(begin)):
            await self.look_for_runs()

    async def _refresh(self) -> None:
        if self._view is not None:
            await self._view.refresh()

    def _follow(self, snapshot: Snapshot) -> None:
        self._stop.show(snapshot)
        if snapshot.active or snapshot.run.command == "train":  # what caches say nothing of, `latest` finds
            self._offer(Latest(snapshot.run, snapshot.active, not snapshot.active and snapshot.resumable))

    def _offer(self, found: Latest) -> None:
        """Shows the buttons that make sense: nothing is started beside what runs already."""
        self._caches.set_visibility(not found.active)
        self._start.set_visibility(not found.active)
        self._resume.set_visibility(found.resumable)
        # The most likely next thing is the filled one.
        if found.resumable:
            self._start.props(add="outline")
        else:
            self._start.props(remove="outline")
