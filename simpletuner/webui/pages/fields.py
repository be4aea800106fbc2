"""Forms made from the facts of options alone: an option that is declared anew appears here by itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nicegui import ui

from simpletuner.configuration.fields import OptionInfo
from simpletuner.configuration.problems import Problem
from simpletuner.webui.pages.layout import Look, icon_button, tagged

Change = Callable[[str, Any], None]
"""Called with an option's name and its new value; None means that it is left out and has its default."""

_FOCUS = """setTimeout(() => {
  const field = getHtmlElement(ID);
  field?.scrollIntoView({block: 'center'});
  field?.querySelector("input, textarea, [tabindex='0']")?.focus();
}, 350)"""

# An input of numbers has no text for what is no number: only the browser knows that something stands there.
_JUDGE = """(event) => {
  const field = event.target, bad = field.validity.badInput;
  if (bad === Boolean(field.isBad)) return;
  field.isBad = bad;
  emit(bad);
}"""
_CLEAR = """{
  const field = getHtmlElement(ID)?.querySelector("input");
  if (field) [field.value, field.isBad] = ["", false];
}"""

_WHOLE = re.compile(r"[+-]?\d{1,19}")
_MOST_DIGITS = 15  # that a float shows without noise


def text_of(value: Any) -> str:
    """A value as people write it in an input."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 10**_MOST_DIGITS else repr(value)
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def value_of(info: OptionInfo, text: str) -> Any:
    """The value that a text in an input stands for: None if empty; a text that doesn't parse stays for the check."""
    text = text.strip() if info.type != "string" else text
    if not text:
        return None
    if info.type in ("integer", "number"):
        return text if text in info.keywords else _number(text)
    if info.type == "list":
        items = [item.strip() for item in text.strip("[]").split(",")]
        numbers = info.example is not None and all(isinstance(item, int | float) for item in json.loads(info.example))
        return [_number(item) if numbers else item for item in items if item]
    return text


def _number(text: str) -> int | float | str:
    if _WHOLE.fullmatch(text):
        return int(text)
    with suppress(ValueError):
        number = float(text)
        return number if math.isfinite(number) else text  # which no JSON can hold
    return text


def default_text(info: OptionInfo, look: Look) -> str:
    """What stands in an empty field: the default."""
    if info.default is None or info.default == "":
        return "" if info.required else look.words("default")
    if isinstance(info.default, bool):
        return look.words("on") if info.default else look.words("off")
    return text_of(info.default)


class FieldView:
    """The field of one option: its input, its help behind a "?", and its problems beneath.

    Args:
        on_change: hears of what a person changes, not of what ``show`` does.
        choices: values and what they are called, for an option that has such a list only at run time.
        name: what it is findable as; the option's name, if it is unique on the page.
    """

    def __init__(
        self,
        info: OptionInfo,
        look: Look,
        on_change: Change,
        *,
        choices: Mapping[Any, str] | None = None,
        suggestions: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        self.info = info
        self.name = name or info.name
        self._look = look
        self._on_change = on_change
        self._choices = dict(choices) if choices is not None else {word: str(word) for word in info.choices or ()}
        self._quiet = False
        self._is_bad = False
        self._help: ui.label | None = None
        self._told: list[ui.label] = []
        label = look.words(info.label)
        with tagged(
            ui.column().classes("w-full").style("gap: 0; min-width: 0"), f"field_{self.name}"
        ) as self.container:
            with ui.row().classes("w-full items-center no-wrap").style("gap: 0"):
                self.element = tagged(self._input(label, suggestions), self.name)
                question = icon_button(
                    "help_outline", look.words("Help: {label}").format(label=label), self._toggle_help
                )
                tagged(question.props("size=sm").classes("faint"), f"help_{self.name}")
            self._below = ui.column().classes("w-full q-px-sm").style("gap: 0")
        self._question = question
        self._question.props["aria-expanded"] = "false"

    def _input(self, label: str, suggestions: Sequence[str]) -> Any:
        info = self.info
        if info.type == "boolean":
            return ui.switch(label, value=bool(info.default), on_change=self._switched).classes("col")
        if self._choices:
            many = info.type == "list"
            chosen = ui.select(
                self._choices, label=label, multiple=many, clearable=True, on_change=self._selected,
                with_input=len(self._choices) > 12,
            )  # fmt: skip
            chosen.props("outlined dense options-dense stack-label clear-icon=close").classes("col")
            return chosen.style("min-width: 0")
        element = ui.input(label, placeholder=default_text(info, self._look), on_change=self._typed)
        element.props("outlined dense stack-label").classes("col").style("min-width: 0")
        if suggestions:
            element.set_autocomplete(list(suggestions))
        if info.type in ("integer", "number") and not info.keywords:
            element.props["type"] = "number"
            element.props["inputmode"] = "numeric" if info.type == "integer" else "decimal"
            element.props["step"] = "1" if info.type == "integer" else "any"
            self._bound(element, "min", info.minimum)
            self._bound(element, "max", info.maximum)
            for event in ("keyup", "blur"):
                element.on(event, self._judged, js_handler=_JUDGE)
        else:
            element.props["autocapitalize"] = "off"
            element.props["spellcheck"] = "false"
        return element

    @staticmethod
    def _bound(element: ui.input, name: str, bound: float | None) -> None:
        if bound is not None:
            element.props[name] = text_of(bound)

    # What a person does

    def _switched(self, event: Any) -> None:
        self._changed(bool(event.value))

    def _selected(self, event: Any) -> None:
        self._changed(event.value or None if self.info.type == "list" else event.value)
        self._show_default(event.value)

    def _typed(self, event: Any) -> None:
        self._changed(value_of(self.info, event.value or ""))

    def _judged(self, event: Any) -> None:
        """Take what is no number, such as "1e", as an empty text, which is no value either: the check says so."""
        self._is_bad = bool(event.args)
        self._changed("" if self._is_bad else value_of(self.info, self.element.value or ""))

    def _changed(self, value: Any) -> None:
        if not self._quiet:
            self._on_change(self.info.name, value)

    def _toggle_help(self) -> None:
        if self._help is None:
            with self._below:
                self._help = tagged(ui.label(self._look.words(self.info.help)), f"hint_{self.name}")
                self._help.classes("text-caption faint").move(target_index=0)
                self._help.set_visibility(False)
        self._help.set_visibility(not self._help.visible)
        self._question.props["aria-expanded"] = str(self._help.visible).lower()

    # What a page does

    def show(self, value: Any) -> None:
        """Show a value as the file has it; None: the default."""
        self._quiet = True
        try:
            if self.info.type == "boolean":
                self.element.set_value(value if isinstance(value, bool) else bool(self.info.default))
            elif self._choices:
                self._show_choice(value)
            elif value_of(self.info, self.element.value or "") != value or self.element.value is None:
                self.element.set_value(text_of(value))
            elif self._is_bad and value is None:
                self._is_bad = False
                ui.run_javascript(_CLEAR.replace("ID", str(self.container.id)))
        finally:
            self._quiet = False

    def _show_choice(self, value: Any) -> None:
        if self.info.type == "list":
            value = [item for item in value if item in self._choices] if isinstance(value, list) else []
        elif value is not None:
            value = value if isinstance(value, str) else text_of(value)
            if value not in self._choices:  # it can be seen, and the check says what is wrong with it
                self._choices[value] = str(value)
                self.element.set_options(self._choices)
        self.element.set_value(value)
        self._show_default(value)

    def _show_default(self, value: Any) -> None:
        if value in (None, []) and not self.element.props.get("use-input"):
            self.element.props["display-value"] = self._default_choice()
            self.element.classes("unset")
        else:
            self.element.props.pop("display-value", None)
            self.element.classes(remove="unset")

    def _default_choice(self) -> str:
        default = self.info.default
        if isinstance(default, list):
            return ", ".join(self._choices.get(item, str(item)) for item in default)
        return self._choices.get(default) or default_text(self.info, self._look)

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Tell what is wrong beneath the field: errors in red, warnings in amber, each with its mend."""
        texts = [f"{problem.message}. {problem.mend}" for problem in problems]
        if texts == [label.text for label in self._told]:
            return
        for label in self._told:
            label.delete()
        with self._below:
            self._told = [_problem_label(problem, text) for problem, text in zip(problems, texts, strict=True)]
        wrong = any(problem.severity == "error" for problem in problems)
        self.element.props["aria-invalid"] = str(wrong).lower()
        if self._told:
            self.element.props["aria-describedby"] = self._told[0].html_id
        else:
            self.element.props.pop("aria-describedby", None)
        if self.info.type != "boolean":
            self.element.props.set_bool("error", wrong)
            self.element.props.set_bool("no-error-icon", wrong)
            self.element.props.set_bool("hide-bottom-space", wrong)

    def set_maximum(self, maximum: int | None) -> None:
        """The largest value that makes sense now, such as the last block of this model."""
        if maximum is None:
            self.element.props.pop("max", None)
        else:
            self.element.props["max"] = text_of(maximum)

    def focus(self) -> None:
        """Scroll to the field and put the cursor there."""
        # Once the tab and the folded part around it have opened.
        ui.run_javascript(_FOCUS.replace("ID", str(self.container.id)))


def _problem_label(problem: Problem, text: str) -> ui.label:
    label = ui.label(text).classes("text-caption").style("overflow-wrap: anywhere")
    label.classes("text-negative" if problem.severity == "error" else "amber")
    return label.mark(f"problem_{problem.severity}")


class Section:
    """A heading over a grid of fields; it hides itself where none of them is shown."""

    def __init__(self, heading: str | None) -> None:
        self.fields: list[FieldView] = []
        with ui.column().classes("w-full").style("gap: 0.25rem") as self.container:
            if heading:
                ui.label(heading).classes("text-subtitle2 q-mt-sm").props('role="heading" aria-level="2"')
            self.grid = ui.element("div").classes("fields")

    def add(self, field: FieldView) -> FieldView:
        """Count a field, which was made in ``grid``, as one of this section."""
        self.fields.append(field)
        return field

    def show_offered(self, offered: Callable[[FieldView], bool]) -> bool:
        """Show the fields that are offered, and the heading if there is any; returns whether there is."""
        return show_offered(self.fields, self.container, offered)


def show_offered(fields: Iterable[FieldView], around: ui.element, offered: Callable[[FieldView], bool]) -> bool:
    """Show those of the fields that are offered, and what is around them if there is any."""
    any_shown = False
    for field in fields:
        shown = offered(field)
        field.container.set_visibility(shown)
        any_shown = any_shown or shown
    around.set_visibility(any_shown)
    return any_shown
