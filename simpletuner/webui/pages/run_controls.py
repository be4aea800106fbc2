"""Buttons that act on runs, and what is said when they can't."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from nicegui import run as background
from nicegui import ui

from simpletuner.configuration.problems import Problem
from simpletuner.webui.pages.building import confirmed
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.pages.snapshot import Snapshot
from simpletuner.webui.runs import PATIENCE, stop_run
from simpletuner.webui.site import Site

T = TypeVar("T")


class Actions:
    """Does one thing at a time, in a thread; what goes wrong is listed where this is built, a line a problem."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._busy = False
        self._list = tagged(ui.column().classes("w-full"), "run_problems").style("gap: 0.15rem").props("role=alert")
        self._list.set_visibility(False)

    @property
    def busy(self) -> bool:
        """Whether something is being done now: what is asked for meanwhile is left."""
        return self._busy

    async def do(self, *steps: Callable[[], Awaitable[bool]]) -> bool:
        """Takes the steps one after the other as long as they say True. Returns whether all did."""
        if self._busy:
            return False
        self._busy = True
        self.list([])
        try:
            for step in steps:
                if not await step():
                    return False
            return True
        except (ValueError, OSError) as error:  # RunError, ProjectError and Refused are values that can't be
            self.list(str(error).splitlines())
            return False
        finally:
            self._busy = False

    def list(self, problems: Iterable[Problem | str]) -> None:
        """Shows these problems, in place of those shown before."""
        self._list.clear()
        lines = [str(problem) for problem in problems if str(problem).strip()]
        self._list.set_visibility(bool(lines))
        with self._list:
            for line in lines:
                is_warning = line.lstrip().startswith("warning:")
                with tagged(ui.row().classes("items-start no-wrap"), "run_problem").style("gap: 0.4rem"):
                    icon = ui.icon("warning" if is_warning else "error", size="1.2rem").props("aria-hidden=true")
                    icon.classes("amber" if is_warning else "text-negative")
                    ui.label(line).style("overflow-wrap: anywhere")


async def threaded(function: Callable[[], T]) -> bool:
    """Calls what blocks in a thread; a step of `Actions.do`."""
    await background.io_bound(function)
    return True


class StopButtons:
    """Stop, and after some patience "End at once" with a confirmation; shown when they make sense."""

    def __init__(self, site: Site, look: Look, actions: Actions, refresh: Callable[[], Awaitable[None]]) -> None:
        self._site, self._look, self._actions, self._refresh = site, look, actions, refresh
        self._run_id: str | None = None
        self._stop = tagged(ui.button(look.words("Stop"), icon="stop", on_click=self._ask_to_stop), "run_stop")
        self._end = tagged(
            ui.button(look.words("End at once"), icon="dangerous", on_click=self._end_at_once), "run_end"
        )
        self._end.props("color=negative outline")
        self.hide()

    def hide(self) -> None:
        """Shows neither, as where nothing runs."""
        self._stop.set_visibility(False)
        self._end.set_visibility(False)

    def show(self, snapshot: Snapshot) -> None:
        """Shows the button that fits the run's state."""
        self._run_id = snapshot.run.id
        is_stopping = snapshot.run.state == "stopping"
        self._stop.set_visibility(snapshot.active and not is_stopping)
        self._end.set_visibility(snapshot.stopping is not None and snapshot.stopping >= PATIENCE)

    async def _ask_to_stop(self) -> None:
        run_id = self._run_id
        if run_id is not None and await self._actions.do(lambda: threaded(lambda: stop_run(self._site, run_id))):
            ui.notify(self._look.words("Stopping. What was trained so far is saved as a checkpoint."))
            await self._refresh()

    async def _end_at_once(self) -> None:
        _, run_id = self._look.words, self._run_id
        question = _("End the run at once? What was trained since the last checkpoint is lost.")
        if run_id is None or not await confirmed(question, _("End at once"), self._look, name="end"):
            return
        if await self._actions.do(lambda: threaded(lambda: stop_run(self._site, run_id, at_once=True))):
            await self._refresh()
