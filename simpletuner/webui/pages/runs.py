"""The pages `/runs`, the list of all runs, and `/runs/{id}`, one of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from nicegui import run as background
from nicegui import ui

from simpletuner.webui import wording
from simpletuner.webui.pages.building import cells, confirmed, table
from simpletuner.webui.pages.layout import Look, frame, icon_button, look_of, tagged
from simpletuner.webui.pages.live_view import live_view
from simpletuner.webui.pages.past_runs import methods_of, run_values
from simpletuner.webui.pages.run_controls import Actions, StopButtons, threaded
from simpletuner.webui.pages.run_parts import StateLine
from simpletuner.webui.pages.run_words import command_words
from simpletuner.webui.pages.snapshot import Snapshot, last_value
from simpletuner.webui.records import metrics_path, read_record
from simpletuner.webui.runs import Run, RunError, forget_run, is_active, list_runs, read_run, resume_run
from simpletuner.webui.site import Site
from simpletuner.webui.table import newest_rows
from simpletuner.webui.watch import Progress, progress

REFRESH = 5.0


@dataclass(frozen=True)
class Entry:
    """A run in the list; `methods` are what aligned it, with + between them."""

    run: Run
    active: bool
    progress: Progress
    base_loss: float | None
    methods: str

    @property
    def seconds(self) -> float:
        """How long it took, or takes until now."""
        return (time.time() if self.run.ended is None else self.run.ended) - self.run.started


def entries(site: Site) -> list[Entry]:
    """All runs, the newest first; it reads files."""
    found = []
    for run in list_runs(site):
        try:
            done, rows = progress(run), newest_rows(metrics_path(run.folder, read_record(run.folder)))
        except (OSError, ValueError):  # forgotten meanwhile
            continue
        loss = last_value(rows, "base_loss") if run.command == "train" else None
        found.append(Entry(run, is_active(run), done, loss, methods_of(run_values(run))))
    return found


def register_runs(site: Site) -> None:
    """Registers `/runs` and `/runs/{run_id}`."""

    @ui.page("/runs")
    def runs_page(request: Request, project: str = "") -> None:
        with frame(site, request, look_of(request).words("Runs"), active="runs") as look:
            RunList(site, look, project)

    @ui.page("/runs/{run_id}")
    async def run_page(request: Request, run_id: str) -> None:
        try:
            run = await background.io_bound(read_run, site, run_id)
        except RunError:
            run = None
        with frame(site, request, run.project if run is not None else "", active="runs") as look:
            if run is None:
                tagged(ui.label(look.words("There is no such run.")), "run_unknown")
                ui.link(look.words("All runs"), "/runs")
            else:
                RunPage(site, look, run)


class RunPage:
    """One run: what it belongs to, its buttons, its live view."""

    def __init__(self, site: Site, look: Look, run: Run) -> None:
        self._site, self._run_id = site, run.id
        with ui.row().classes("w-full items-center").style("gap: 0.25rem 1rem"):
            with ui.element("div").props("role=heading aria-level=1"):
                tagged(ui.link(run.project, f"/projects/{quote(run.project)}"), "run_project").classes("text-h6")
            ui.label(f"{command_words(run, look)} · {wording.moment(run.started, look.language)}").classes("faint")
        with ui.row().style("gap: 0.5rem"):
            self._resume = tagged(
                ui.button(look.words("Resume"), icon="play_arrow", on_click=self._resume_run), "run_resume"
            )
            self._resume.set_visibility(False)
            place = ui.row().style("gap: 0.5rem")
        self._actions = Actions(look)
        self._view = live_view(site, look, run.id, resume=self._resume_run, on_snapshot=self._follow)
        with place:
            self._stop = StopButtons(site, look, self._actions, self._view.refresh)

    def _follow(self, snapshot: Snapshot) -> None:
        self._stop.show(snapshot)
        # One that failed has the button where it says so.
        self._resume.set_visibility(snapshot.resumable and snapshot.run.state == "stopped")

    async def _resume_run(self) -> None:
        if await self._actions.do(lambda: threaded(lambda: resume_run(self._site, self._run_id))):
            await self._view.refresh()


class RunList:
    """All runs in a table, to look at, to compare, to forget."""

    def __init__(self, site: Site, look: Look, project: str) -> None:
        self._site, self._look, self._wanted = site, look, project
        self._entries: list[Entry] = []
        self._chosen: dict[str, None] = {}  # ids, in the order in which they were ticked
        self._rows: dict[str, Callable[[Entry], None]] = {}
        _ = look.words
        ui.label(_("Runs")).classes("text-h6").props("role=heading aria-level=1")
        with ui.row().classes("w-full items-center").style("gap: 0.5rem 1rem"):
            self._filter = tagged(ui.select({"": _("All projects")}, value="", label=_("Project")), "run_filter")
            self._filter.props("dense outlined").style("min-width: 12rem").on_value_change(self._choose_project)
            self._compare = tagged(ui.button(_("Compare"), icon="stacked_line_chart", on_click=self._open), "compare")
            self._hint = ui.label(_("Tick the runs to compare.")).classes("faint")
        self._actions = Actions(look)
        self._empty = tagged(ui.label(_("No runs yet. Start one on the Run tab of a project.")), "no_runs")
        self._empty.set_visibility(False)
        self._place = ui.column().classes("w-full")
        self._show_choice()
        self.timer = ui.timer(REFRESH, self.refresh)

    async def refresh(self) -> None:
        """Reads the runs in a thread. Rows that are there stay and change, so that nobody's place is lost."""
        found = await background.io_bound(entries, self._site)
        if found is None:  # the server is about to end
            return
        self._entries = found
        projects = sorted({entry.run.project for entry in found} | ({self._wanted} - {""}))
        options = {"": self._look.words("All projects")} | {name: name for name in projects}
        if self._filter.options != options:
            self._filter.set_options(options, value=self._wanted)
        self._show()

    def _choose_project(self) -> None:
        if self._filter.value != self._wanted:
            self._wanted = self._filter.value
            self._show()

    def _show(self) -> None:
        shown = [entry for entry in self._entries if self._wanted in ("", entry.run.project)]
        self._empty.set_visibility(not self._entries)
        if list(self._rows) != [entry.run.id for entry in shown]:
            self._build(shown)
        for entry in shown:
            self._rows[entry.run.id](entry)
        there = {entry.run.id for entry in shown}
        self._chosen = {run_id: None for run_id in self._chosen if run_id in there}
        self._show_choice()

    def _build(self, shown: list[Entry]) -> None:
        _ = self._look.words
        self._rows = {}
        self._place.clear()
        if not shown:
            return
        headings = ["", _("Run"), _("State"), _("Steps"), _("Base loss"), _("Method"), _("Duration"), ""]
        with self._place, table(headings, "run_table"):
            for entry in shown:
                self._row(entry)

    def _row(self, entry: Entry) -> None:
        """A row of the table, and the function that brings it up to date."""
        look, run, _ = self._look, entry.run, self._look.words
        kept: dict[str, Any] = {}

        def name() -> None:
            tagged(ui.link(run.project, f"/runs/{quote(run.id)}"), f"open_{run.id}")
            started = wording.moment(run.started, look.language)
            ui.label(f"{command_words(run, look)} · {started}").classes("text-caption faint")

        def tick() -> None:
            box = ui.checkbox(value=run.id in self._chosen, on_change=lambda event: self._tick(run.id, event.value))
            tagged(box, f"tick_{run.id}").props["aria-label"] = _("Compare this run")

        def forget() -> None:
            button = icon_button("delete_outline", _("Forget this run"), lambda: self._forget(entry))
            kept["forget"] = tagged(button, f"forget_{run.id}").classes("faint")

        def kept_as(key: str, make: Callable[[], Any]) -> Callable[[], None]:
            return lambda: kept.update({key: make()})

        def text() -> ui.label:
            return ui.label().classes("text-no-wrap")

        texts = {key: kept_as(key, text) for key in ("steps", "loss", "methods", "duration")}
        state = kept_as("state", lambda: StateLine(look, name=f"state_{run.id}", live=False))
        cells([tick, name, state, *texts.values(), forget])

        def update(now: Entry) -> None:
            kept["state"].show(now.run)
            done, total = (wording.count(steps, look.language) for steps in (now.progress.step, now.progress.total))
            is_training = now.run.command == "train"
            for key, words in {
                "steps": (f"{done} / {total}" if now.progress.total else done) if is_training else wording.NOTHING,
                "loss": wording.number(now.base_loss, look.language),
                "methods": now.methods or wording.NOTHING,
                "duration": wording.duration(now.seconds, look.language),
            }.items():
                if kept[key].text != words:
                    kept[key].text = words
            kept["forget"].set_visibility(not now.active)

        self._rows[run.id] = update

    def _tick(self, run_id: str, ticked: bool) -> None:
        if ticked:
            self._chosen[run_id] = None
        else:
            self._chosen.pop(run_id, None)
        self._show_choice()

    def _show_choice(self) -> None:
        self._compare.set_enabled(len(self._chosen) > 1)
        self._hint.set_visibility(len(self._chosen) < 2)

    def _open(self) -> None:
        ui.navigate.to("/compare?" + urlencode({"runs": ",".join(self._chosen)}, safe=","))

    async def _forget(self, entry: Entry) -> None:
        _ = self._look.words
        question = _("Forget this run of {project}? Its outputs stay in {folder}.").format(
            project=entry.run.project, folder=entry.run.output_dir
        )
        if not await confirmed(question, _("Forget"), self._look, name="forget"):
            return
        if await self._actions.do(lambda: threaded(lambda: forget_run(self._site, entry.run.id))):
            await self.refresh()
