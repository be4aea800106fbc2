"""The page of one project: its forms, what is wrong with them, and its run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Request
from nicegui import background_tasks, ui

from simpletuner.configuration.fields import OptionInfo, Place, by_place
from simpletuner.configuration.paths import local_path
from simpletuner.configuration.problems import Problem
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.translation import marked
from simpletuner.webui.confinement import Refused
from simpletuner.webui.draft import OPTIONS, Examination, Examiner, dataset_place, examine
from simpletuner.webui.estimates import CacheEstimate, FileCounts, cache_estimate, entries_for_estimate
from simpletuner.webui.pages.datasets import DatasetCards
from simpletuner.webui.pages.fields import FieldView, Section
from simpletuner.webui.pages.json_view import JsonView
from simpletuner.webui.pages.layout import Look, frame, look_of, tagged
from simpletuner.webui.pages.losses import LossCards
from simpletuner.webui.pages.problem_list import ProblemList
from simpletuner.webui.pages.run_panel import run_panel
from simpletuner.webui.pages.saving import Saving
from simpletuner.webui.project_data import as_option, own_datasets
from simpletuner.webui.projects import ProjectError
from simpletuner.webui.site import Site
from simpletuner.webui.workspace import Workspace

TABS = {
    "basic": "Basic",
    "model": "Model",
    "data": "Data",
    "training": "Training",
    "validation": "Validation",
    "run": "Run",
    "json": "JSON",
}
"""The tabs, by how the address has them; in it "losses" is the second half of "training"."""
OPTIMISATION, LOSSES, LOSS_SECTION = "optimisation", "losses", "Loss functions"

_MEDIA = {"image": marked("image"), "video": marked("video")}
_PANELS = "width: 100%; background: transparent"


def register_project(site: Site) -> None:
    """Register ``/projects/{name}``; ``?tab=`` opens a tab."""

    @ui.page("/projects/{name}", response_timeout=15.0)
    async def project_page(request: Request, name: str, tab: str = "basic") -> None:
        try:
            workspace = await asyncio.to_thread(Workspace, site, name)
        except (ProjectError, Refused) as error:
            _missing(site, request, name, str(error))
            return
        examination = await asyncio.to_thread(examine, site, workspace.draft.values)
        with frame(site, request, name):
            ProjectPage(workspace, look_of(request), examination).build(tab)


def _missing(site: Site, request: Request, name: str, reason: str) -> None:
    with frame(site, request, name) as look:
        ui.label(look.words("This project can't be opened.")).classes("text-h6").props('role="heading" aria-level="1"')
        tagged(ui.label(reason), "project_problem").style("overflow-wrap: anywhere")
        ui.link(look.words("Back to the projects"), "/")


class ProjectPage:
    """One project, open in one browser tab."""

    def __init__(self, workspace: Workspace, look: Look, examination: Examination) -> None:
        self._workspace, self._look, self._examination = workspace, look, examination
        self._site, self._name = workspace.site, workspace.draft.name
        self._saving = Saving(
            workspace,
            look,
            saved=self._examine_soon,
            reloaded=self._reloaded,
            text_is_whole=lambda: self._json.is_whole,
        )
        self._problems = ProblemList(look, self.go_to)
        self._fields: dict[str, FieldView] = {}
        self._tab_of: dict[str, str] = {}
        self._sections: list[Section] = []
        self._revealed: set[str] = set()
        self._counts = FileCounts(self._site.roots)
        self._estimating: asyncio.Task[None] | None = None
        self._client = ui.context.client
        self._examiner = Examiner(self._to_examine, self._show_examination, self._start)

    # Building

    def build(self, tab: str) -> None:
        """Build the page, with a tab open."""
        words = self._look.words
        self._header()
        self._saving.build_banner()
        self._problems.build_list()
        places = by_place(list(OPTIONS.values()))
        opened = "training" if tab == LOSSES else tab if tab in TABS else "basic"
        with ui.tabs().classes("w-full") as self._tabs:
            self._tabs.props("dense align=left outside-arrows mobile-arrows no-caps inline-label")
            for name, title in TABS.items():
                tagged(ui.tab(name, words(title)), f"tab_{name}")
        self._tabs.set_value(opened)
        with ui.tab_panels(self._tabs, value=opened, animated=False).style(_PANELS):
            for name, title in TABS.items():
                with ui.tab_panel(name):
                    self._panel(name, {place: infos for place, infos in places.items() if place[0] == title}, tab)
        self._show_values()
        self._show_examination(self._examination)
        for tabs in (self._tabs, self._inner):
            tabs.on_value_change(self._keep_tab)
        self._client.on_delete(self._close)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return background_tasks.create(work, name=f"page of {self._name}", context=self._client)

    def _close(self) -> None:
        self._examiner.close()
        if self._estimating is not None:
            self._estimating.cancel()

    def _header(self) -> None:
        with ui.row().classes("title-row w-full items-center").style("gap: 0.25rem 0.75rem"):
            with ui.row().classes("items-center no-wrap col-grow").style("gap: 0.5rem; min-width: 0"):
                ui.label(self._name).classes("text-h6 ellipsis").props('role="heading" aria-level="1"')
                self._saving.build_mark()
            self._problems.build_button()
            self._saving.build_button()

    def _panel(self, name: str, places: dict[Place, list[OptionInfo]], tab: str) -> None:
        if name == "training":
            self._training(places, LOSSES if tab == LOSSES else OPTIMISATION)
        elif name == "json":
            values, broken = lambda: self._workspace.draft.values, self._saving.show_changed
            self._json = JsonView(self._look, values, self._replaced, broken)
        elif name == "run":
            titles = " · ".join(self._look.words(section) for _, section, _ in places)
            with tagged(ui.expansion(titles).props("dense").classes("w-full"), "run_options"):
                self._forms(places, name)
            run_panel(self._site, self._look, self._name, self._saving.save)
        else:
            self._forms(places, name)
            if name == "data":
                self._cards = DatasetCards(self._look, self._was_edited, self._make_datasets, self._media)
                self._cards.show(self._workspace.datasets)

    def _forms(self, places: dict[Place, list[OptionInfo]], tab: str) -> None:
        for (_, section, _), infos in places.items():
            made = Section(self._look.words(section))
            with made.grid:
                for info in infos:
                    self._know(made.add(self._field(info)), tab)
            self._sections.append(made)

    def _field(self, info: OptionInfo) -> FieldView:
        families = self._families() if info.name == "model_family" else None
        return FieldView(info, self._look, self._edited, choices=families)

    def _families(self) -> dict[str, str]:
        words = self._look.words
        return {row.name: f"{row.name} ({words(_MEDIA[row.media])}, {row.alignment})" for row in FAMILIES.values()}

    def _know(self, field: FieldView, tab: str) -> None:
        self._fields[field.info.name] = field
        self._tab_of[field.info.name] = tab

    def _training(self, places: dict[Place, list[OptionInfo]], opened: str) -> None:
        words = self._look.words
        groups = {group: infos for (_, section, group), infos in places.items() if section == LOSS_SECTION}
        with ui.tabs().props("dense no-caps align=left") as self._inner:
            tagged(ui.tab(OPTIMISATION, words("Optimisation")), "tab_optimisation")
            tagged(ui.tab(LOSSES, words("Loss functions")), "tab_losses")
        self._inner.set_value(opened)
        with ui.tab_panels(self._inner, value=opened, animated=False).style(_PANELS):
            with ui.tab_panel(OPTIMISATION):
                self._forms({place: infos for place, infos in places.items() if place[1] != LOSS_SECTION}, "training")
            with ui.tab_panel(LOSSES):
                self._losses = LossCards(groups, self._look, self._edited)
                for field in self._losses.fields:
                    self._know(field, LOSSES)

    # Editing

    def _edited(self, name: str, value: Any) -> None:
        """A field was changed; None, or a switch that is back at the default, leaves the option out."""
        info, draft = OPTIONS[name], self._workspace.draft
        is_back = info.type == "boolean" and value == info.default and not draft.was_set(name)
        if value is None or is_back:
            draft.unset(name)
        else:
            draft.set(name, value)
        self._json.show()
        self._was_edited()

    def _replaced(self, values: dict[str, Any]) -> None:
        """The text was edited: the forms follow."""
        self._workspace.draft.replace(values)
        self._show_values()
        self._was_edited()

    def _reloaded(self) -> None:
        self._cards.show(self._workspace.datasets)
        self._show_values()
        self._json.show()
        self._examine_soon()

    def _make_datasets(self) -> None:
        """Name a list of the project's own, which is written when the project is saved."""
        named = as_option(own_datasets(self._site, self._name))
        self._fields["data_backend_config"].show(named)
        self._edited("data_backend_config", named)

    def _media(self) -> str:
        family = FAMILIES.get(str(self._workspace.draft.get("model_family")))
        return "image" if family is None else family.media

    def _was_edited(self) -> None:
        self._saving.show_changed()
        self._examine_soon()

    def _show_values(self) -> None:
        for name, field in self._fields.items():
            field.show(self._workspace.draft.get(name))

    # Examining

    def _examine_soon(self) -> None:
        self._examiner.changed()

    async def _to_examine(self) -> Callable[[], Examination]:
        if await self._workspace.follow():
            self._cards.show(self._workspace.datasets)
            self._saving.show_changed()
        return partial(examine, self._site, dict(self._workspace.draft.values), self._workspace.edited_entries)

    def _offered(self, field: FieldView) -> bool:
        name, found = field.info.name, self._examination
        on_anyhow = name.endswith("_enabled") and bool(getattr(found.config, name))
        return found.offers(field.info) or on_anyhow or name in self._revealed

    def _show_examination(self, examination: Examination) -> None:
        self._examination = examination
        for section in self._sections:
            section.show_offered(self._offered)
        self._losses.show(examination, self._workspace.draft, self._offered)
        for name, field in self._fields.items():
            field.show_problems(examination.of(name))
        self._cards.show_problems(examination.problems)
        self._problems.show(examination.problems)
        if self._estimating is None or self._estimating.done():
            self._estimating = self._start(self._estimate())

    async def _estimate(self) -> None:
        """Count the files and say how large the feature caches will be, for what is on now."""
        seen = None
        while seen is not self._examination:
            seen = self._examination
            entries = [dict(entry) for entry in self._workspace.datasets.entries]
            self._losses.show_caches(await asyncio.to_thread(self._estimates, seen, entries))

    def _estimates(self, found: Examination, entries: Sequence[dict[str, Any]]) -> dict[str, CacheEstimate]:
        config = found.config
        enabled = [options for options in (config.crepa, config.urepa) if options.enabled]
        datasets = entries_for_estimate(entries) if enabled else []
        counts = self._counts(datasets)
        return {
            options.PREFIX: cache_estimate(options, config, found.family, datasets=datasets, counts=counts)
            for options in enabled
        }

    # Finding one's way

    def go_to(self, problem: Problem) -> None:
        """Open the tab of a problem's field and put the cursor there; the text, where no field is about it."""
        if dataset_place(problem, local_path(self._workspace.datasets.named)) is not None:
            self._open("data")
            field = self._cards.field_of(problem)
        else:
            name = next((name for name in self._fields if problem in self._examination.of(name)), "")
            self._open(self._tab_of.get(name, "json"))
            self._reveal(name)
            field = self._fields.get(name)
        if field is not None:
            field.focus()

    def _reveal(self, name: str) -> None:
        """Show a field although it has no effect now, so that what is set there can be removed."""
        if name in self._fields and not self._offered(self._fields[name]):
            self._revealed.add(name)
            self._show_examination(self._examination)
        self._losses.open_part_of(name)

    def _open(self, tab: str) -> None:
        if tab in (LOSSES, "training"):
            self._inner.set_value(LOSSES if tab == LOSSES else OPTIMISATION)
        self._tabs.set_value("training" if tab == LOSSES else tab)

    def _keep_tab(self) -> None:
        """Keep the tab in the address, so that a reload opens it again."""
        in_losses = self._tabs.value == "training" and self._inner.value == LOSSES
        tab = LOSSES if in_losses else self._tabs.value
        ui.navigate.history.replace(f"/projects/{quote(self._name)}?tab={tab}")
