"""All problems of a project in one list, from which each leads to its field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nicegui import ui

from simpletuner.configuration.problems import Problem
from simpletuner.webui.pages.layout import Look, tagged


class ProblemList:
    """How many problems there are, on a button; and the list that it unfolds.

    Args:
        go_to: brings the reader to what a problem is about.
    """

    def __init__(self, look: Look, go_to: Callable[[Problem], None]) -> None:
        self._look = look
        self._go_to = go_to
        self._problems: Sequence[Problem] = ()

    def build_button(self) -> None:
        """Build the button that says how many there are."""
        self._button = tagged(ui.button(on_click=self._toggle), "problems")
        self._button.props('flat dense no-caps aria-expanded="false"')

    def build_list(self) -> None:
        """Build the list, folded."""
        self._list = tagged(ui.list().classes("w-full").props("dense bordered separator"), "problem_list")
        self._list.set_visibility(False)

    def show(self, problems: Sequence[Problem]) -> None:
        """Show these problems."""
        errors = sum(problem.severity == "error" for problem in problems)
        warnings = len(problems) - errors
        self._button.set_text(problem_summary(errors, warnings, self._look.words))
        self._button.props["icon"] = "error_outline" if errors else "warning_amber" if warnings else "check_circle"
        self._button.props["color"] = "negative" if errors else None if warnings else "positive"
        self._button.classes(**({"add": "amber"} if warnings and not errors else {"remove": "amber"}))
        if list(problems) == list(self._problems):
            return
        self._problems = problems
        self._list.clear()
        with self._list:
            for problem in problems:
                self._line(problem)
        if not problems:
            self._unfold(False)

    def _line(self, problem: Problem) -> None:
        wrong = problem.severity == "error"
        with ui.item(on_click=partial(self._go_to, problem)).mark("listed_problem"):
            with ui.item_section().props("avatar").style("min-width: 2rem; padding: 0"):
                icon = ui.icon("error_outline" if wrong else "warning_amber", size="xs")
                icon.classes("text-negative" if wrong else "amber").props('aria-hidden="true"')
            with ui.item_section().style("overflow-wrap: anywhere"):
                ui.label(problem.option).classes("text-caption text-weight-medium")
                ui.label(f"{problem.message}. {problem.mend}").classes("text-caption")

    def _toggle(self) -> None:
        self._unfold(not self._list.visible and bool(self._problems))

    def _unfold(self, shown: bool) -> None:
        self._list.set_visibility(shown)
        self._button.props["aria-expanded"] = str(shown).lower()


def problem_summary(errors: int, warnings: int, words: Callable[[str], str]) -> str:
    """How many problems there are: "3 errors, 1 warning"."""
    parts = []
    if errors:
        parts.append(words("1 error") if errors == 1 else words("{count} errors").format(count=errors))
    if warnings:
        parts.append(words("1 warning") if warnings == 1 else words("{count} warnings").format(count=warnings))
    return ", ".join(parts) or words("No problems")
