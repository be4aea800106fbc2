"""The page of all projects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from fastapi import Request
from nicegui import ui

from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui import wording
from simpletuner.webui.confinement import Refused
from simpletuner.webui.pages.building import confirmed
from simpletuner.webui.pages.layout import Look, frame, look_of, tagged
from simpletuner.webui.pages.run_words import state_words
from simpletuner.webui.projects import (
    Example,
    ProjectError,
    Summary,
    create_project,
    delete_project,
    duplicate_project,
    list_examples,
    list_projects,
    rename_project,
)
from simpletuner.webui.runs import Run, list_runs
from simpletuner.webui.site import Site


def register_projects(site: Site) -> None:
    """Register ``/``, the page of all projects."""

    @ui.page("/")
    async def projects_page(request: Request) -> None:
        look = look_of(request)
        examples = await asyncio.to_thread(list_examples)
        with frame(site, request, look.words("Projects"), active="projects"):
            await ProjectsPage(site, look, examples).build()


def latest_runs(site: Site) -> dict[str, Run]:
    """The newest run of each project."""
    return {run.project: run for run in reversed(list_runs(site))}


def address(name: str) -> str:
    """Where the page of a project is."""
    return f"/projects/{quote(name)}"


class ProjectsPage:
    """The list of projects, and what can be done with each."""

    def __init__(self, site: Site, look: Look, examples: list[Example]) -> None:
        self._site, self._look, self._examples = site, look, examples

    async def build(self) -> None:
        """Build the page."""
        words = self._look.words
        with ui.row().classes("w-full items-center justify-between"):
            ui.label(words("Projects")).classes("text-h6").props('role="heading" aria-level="1"')
            tagged(ui.button(words("New project"), icon="add", on_click=self.new), "new_project")
        self._list = ui.column().classes("w-full").style("gap: 0.5rem")
        await self.refresh()

    async def refresh(self) -> None:
        """Show the folder as it is now."""
        words = self._look.words
        try:
            projects = await asyncio.to_thread(list_projects, self._site)
            runs = await asyncio.to_thread(latest_runs, self._site)
        except (ProjectError, OSError) as error:
            projects, runs = [], {}
            ui.notify(str(error), type="negative", close_button=words("Close"))
        self._list.clear()
        with self._list:
            if not projects:
                self._nothing()
            for project in projects:
                self._line(project, runs.get(project.name))

    def _nothing(self) -> None:
        words = self._look.words
        with tagged(ui.column().classes("w-full items-center q-pa-lg"), "no_projects"):
            ui.label(words("A project is a configuration in {folder}.").format(folder=self._site.configs))
            ui.label(words("Make the first one from the example of a model family, or an empty one."))

    def _line(self, project: Summary, run: Run | None) -> None:
        card = ui.card().classes("w-full items-center q-px-md q-py-sm").props("flat bordered")
        with tagged(card, f"project_{project.name}").style("flex-direction: row; gap: 1rem"):
            with ui.column().classes("col").style("gap: 0; min-width: 0"):
                if project.problem is None:
                    name = ui.link(project.name, address(project.name))
                    tagged(name, f"open_{project.name}").classes("text-weight-medium ellipsis")
                else:
                    ui.label(project.name).classes("text-weight-medium ellipsis")
                told = ui.label(self._facts(project)).style("overflow-wrap: anywhere")
                told.classes("text-caption").classes("faint" if project.problem is None else "text-negative")
            if run is not None:
                link = ui.link(state_words(run, self._look), f"/runs/{run.id}").classes("text-caption no-wrap")
                tagged(link, f"state_{project.name}")
            self._menu(project)

    def _facts(self, project: Summary) -> str:
        """Family, method and time of a project, or why it can't be opened."""
        if project.problem is not None:
            return project.problem
        words = self._look.words
        changed = words("changed {time}").format(time=wording.moment(project.modified, self._look.language))
        facts = (project.family, project.method or words("no alignment"), changed)
        return " · ".join(fact for fact in facts if fact)

    def _menu(self, project: Summary) -> None:
        words, name = self._look.words, project.name
        button = ui.button(icon="more_vert").props("flat round dense")
        button.props["aria-label"] = words("Actions for {name}").format(name=name)
        with tagged(button, f"menu_{name}"), ui.menu():
            if project.problem is None:
                open_it = partial(ui.navigate.to, address(name))
                ui.menu_item(words("Open"), open_it)
                tagged(ui.menu_item(words("Duplicate"), partial(self.duplicate, name)), f"duplicate_{name}")
                tagged(ui.menu_item(words("Rename"), partial(self.rename, name)), f"rename_{name}")
            tagged(ui.menu_item(words("Delete"), partial(self.delete, name)), f"delete_{name}")

    async def new(self) -> None:
        """Ask for a family, an example and a name; make the project and open it."""
        words = self._look.words
        with ui.dialog() as dialog, tagged(ui.card().classes("w-full"), "new_dialog"):
            ui.label(words("New project")).classes("text-h6")
            families = {"": words("Empty"), **{family: _told(family) for family in FAMILIES}}
            family = ui.select(families, value="", label=words("Model family"), with_input=True)
            tagged(family.classes("w-full").props("outlined dense"), "new_family")
            example = ui.select({}, label=words("Example"))
            tagged(example.classes("w-full").props("outlined dense"), "new_example")
            example.set_visibility(False)
            name = tagged(ui.input(words("Name")).classes("w-full").props("outlined dense autofocus"), "new_name")
            wrong = tagged(ui.label().classes("text-negative text-caption").props('role="alert"'), "new_problem")
            with ui.row().classes("w-full justify-end"):
                ui.button(words("Cancel"), on_click=dialog.close).props("flat")
                create = tagged(ui.button(words("Create")), "new_create")

        suggested = ""

        def choose_example() -> None:
            nonlocal suggested
            if not name.value or name.value == suggested:
                suggested = example.value or ""
                name.set_value(suggested)

        def choose_family() -> None:
            fitting = {known.name: _example_told(known) for known in self._examples if known.family == family.value}
            example.set_options(fitting, value=next(iter(fitting), None))
            example.set_visibility(bool(fitting))
            choose_example()

        async def make() -> None:
            chosen = example.value if example.visible else None
            if await self._tried(partial(create_project, self._site, name.value.strip(), chosen), wrong):
                dialog.close()
                ui.navigate.to(address(name.value.strip()))

        family.on_value_change(choose_family)
        example.on_value_change(choose_example)
        create.on_click(make)
        name.on("keydown.enter", make)
        dialog.open()

    async def duplicate(self, name: str) -> None:
        """Ask for the copy's name and make it."""
        await self._with_name(
            self._look.words("Duplicate {name}").format(name=name),
            f"{name} 2",
            partial(duplicate_project, self._site, name),
        )

    async def rename(self, name: str) -> None:
        """Ask for another name and give it."""
        title = self._look.words("Rename {name}").format(name=name)
        await self._with_name(title, name, partial(rename_project, self._site, name))

    async def _with_name(self, title: str, start: str, act: Callable[[str], object]) -> None:
        words = self._look.words
        with ui.dialog() as dialog, tagged(ui.card(), "name_dialog"):
            ui.label(title).classes("text-h6").style("overflow-wrap: anywhere")
            name = ui.input(words("Name"), value=start).classes("w-full").props("outlined dense autofocus")
            tagged(name, "name_input")
            wrong = tagged(ui.label().classes("text-negative text-caption").props('role="alert"'), "name_problem")
            with ui.row().classes("w-full justify-end"):
                ui.button(words("Cancel"), on_click=dialog.close).props("flat")
                agree = tagged(ui.button(words("OK")), "name_ok")

        async def do() -> None:
            if await self._tried(lambda: act(name.value.strip()), wrong):
                dialog.close()
                await self.refresh()

        agree.on_click(do)
        name.on("keydown.enter", do)
        dialog.open()

    async def delete(self, name: str) -> None:
        """Delete a project once that is confirmed."""
        words = self._look.words
        file = self._site.configs / f"{name}.json"
        question = words("Delete {file}? What its runs wrote stays.").format(file=file)
        if await confirmed(question, words("Delete"), self._look, name="delete"):
            with self._list:
                await self._tried(partial(delete_project, self._site, name), None)
                await self.refresh()

    async def _tried(self, act: Callable[[], object], wrong: ui.label | None) -> bool:
        """Do something with files; what it says if it can't be done is shown."""
        try:
            await asyncio.to_thread(act)
        except (ProjectError, Refused) as error:
            if wrong is None:
                ui.notify(str(error), type="negative", close_button=self._look.words("Close"))
            else:
                wrong.set_text(str(error))
            return False
        return True


def _told(family: str) -> str:
    return f"{family} ({FAMILIES[family].alignment})"


def _example_told(example: Example) -> str:
    return example.name if example.method is None else f"{example.name} ({example.method})"
