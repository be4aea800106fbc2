"""What the pages of runs are built of: sections, tables, questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui

from simpletuner.webui.pages.layout import Look, tagged


def table(headings: Sequence[str], name: str) -> ui.element:
    """A table with these column headings, which scrolls sideways where it must; its body, to be filled with `cells`."""
    with tagged(ui.element("q-markup-table"), name).props("flat bordered dense wrap-cells").classes("w-full"):
        with ui.element("thead"), ui.element("tr"):
            for heading in headings:
                with ui.element("th").props("scope=col").classes("text-left"):
                    ui.label(heading)
        return ui.element("tbody")


def cells(values: Sequence[str | Callable[[], Any]], *, heading: bool = False) -> None:
    """A row of a table: texts, or functions that build what is in a cell. `heading`: the first names its row."""
    with ui.element("tr"):
        for place, value in enumerate(values):
            with ui.element("td").classes("text-left") as cell:
                if heading and place == 0:
                    cell.props("role=rowheader")  # Quasar draws no line below a `th`
                if callable(value):
                    value()
                else:
                    ui.label(value)


class Section:
    """A heading with content, hidden as long as there is nothing to show."""

    def __init__(self, title: str, name: str) -> None:
        self.column = tagged(ui.column().classes("w-full"), name).style("gap: 0.5rem")
        self.column.set_visibility(False)
        with self.column:
            self.head = ui.row().classes("w-full items-center").style("gap: 0.5rem 1.5rem")
            with self.head:
                ui.label(title).classes("text-subtitle1 text-weight-medium").props("role=heading aria-level=2")
            self.body = ui.column().classes("w-full").style("gap: 0.5rem")


async def confirmed(question: str, action: str, look: Look, *, name: str) -> bool:
    """Asks before something is done that can't be undone; `action` is what the button says."""
    with ui.dialog() as dialog, ui.card():
        ui.label(question)
        with ui.row().classes("w-full justify-end"):
            cancel = ui.button(look.words("Cancel"), on_click=lambda: dialog.submit(False)).props("flat")
            tagged(cancel, f"{name}_cancel")
            agree = ui.button(action, on_click=lambda: dialog.submit(True)).props("color=negative")
            tagged(agree, f"{name}_confirm")
    try:
        return bool(await dialog)
    finally:
        dialog.delete()
