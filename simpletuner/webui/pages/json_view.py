"""A project's file as text, edited both ways: the forms follow the text, and the text the forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from simpletuner.configuration.json_files import parse_json
from simpletuner.configuration.loading import plain_names
from simpletuner.webui.draft import same
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.secrets import hide, restore


class BadText(ValueError):
    """A text that is no JSON object; ``line`` is where, if one line is to blame."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def text_of_values(values: Mapping[str, Any]) -> str:
    """The values as their file has them, secrets masked."""
    return json.dumps(hide(values), indent=2, ensure_ascii=False)


def values_of_text(text: str) -> dict[str, Any]:
    """What the text holds, names without "--". Raises :class:`BadText`."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated.extend(name for index, name in enumerate(names) if name in names[:index])
        return dict(pairs)

    try:
        content = parse_json(text, unique)
    except json.JSONDecodeError as error:
        raise BadText(error.msg, error.lineno, error.colno) from error
    except ValueError as error:
        raise BadText(str(error)) from error
    if not isinstance(content, dict):
        raise BadText('write {"option": value, ...}', 1, 1)
    if repeated:
        raise BadText(f"{repeated[0]!r} stands more than once", *_second_place(text, repeated[0]))
    return plain_names(content)


def _second_place(text: str, name: str) -> tuple[int, int] | tuple[None, None]:
    """Line and column of the last time that a name stands in a text."""
    place = text.rfind(json.dumps(name, ensure_ascii=False))
    if place < 0:
        return None, None
    return text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)


class JsonView:
    """The editor, and beneath it what keeps its text from being taken.

    Args:
        values: gives the draft's values, as they are then.
        on_edit: gets the values of each text that is JSON, secrets restored.
        on_break: hears of each text that is none, and so isn't taken.
    """

    def __init__(
        self,
        look: Look,
        values: Callable[[], Mapping[str, Any]],
        on_edit: Callable[[dict[str, Any]], None],
        on_break: Callable[[], None],
    ) -> None:
        self._look = look
        self._values = values
        self._on_edit, self._on_break = on_edit, on_break
        self._quiet = False
        words = look.words
        ui.label(
            words("The file as it will be saved. What you change here changes the forms, and the other way round.")
        )
        self._wrong = tagged(ui.label().classes("text-negative").props('role="alert"'), "json_problem")
        self._wrong.set_visibility(False)
        self.editor = tagged(ui.codemirror(language="JSON", line_wrapping=True, on_change=self._edited), "json_editor")
        self.editor.classes("w-full").style("height: 65vh")
        self.editor.props["role"] = "group"  # else nobody reads the name of it out
        self.editor.props["aria-label"] = words("The project's file as JSON")
        self._theme(bool(look.dark))
        if look.dark is None:  # only the browser knows
            ui.on("json_dark", lambda event: self._theme(bool(event.args)))
            ui.run_javascript("emitEvent('json_dark', document.body.classList.contains('body--dark'))")
        self.show()

    def _theme(self, dark: bool) -> None:
        self.editor.set_theme("vscodeDark" if dark else "vscodeLight")

    def show(self) -> None:
        """Show the draft's values, unless the text says the same already."""
        values = self._values()
        try:
            if same(values_of_text(self.editor.value), hide(values)):
                self._tell(None)
                return
        except BadText:
            pass
        self._quiet = True
        try:
            self.editor.set_value(text_of_values(values))
        finally:
            self._quiet = False
        self._tell(None)

    @property
    def is_whole(self) -> bool:
        """Whether the forms have all that the text says."""
        return not self._wrong.visible

    def _edited(self) -> None:
        if self._quiet:
            return
        try:
            values = values_of_text(self.editor.value)
        except BadText as problem:
            self._tell(problem)
            self._on_break()
            return
        self._tell(None)
        self._on_edit(restore(values, self._values()))

    def _tell(self, problem: BadText | None) -> None:
        """Say what is wrong beside the editor: a mark in it would move the cursor of somebody who types."""
        self._wrong.set_visibility(problem is not None)
        if problem is None:
            return
        words = self._look.words
        if problem.line is None:
            self._wrong.set_text(words("Not taken over: {reason}").format(reason=problem))
            return
        told = words("Not taken over: line {line}, column {column}: {reason}")
        self._wrong.set_text(told.format(line=problem.line, column=problem.column, reason=problem))
