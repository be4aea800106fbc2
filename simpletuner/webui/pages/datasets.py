"""The list of data sets of a project: a card for each, made from the facts of their options."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui

from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.configuration.dependencies import unmet_dependency
from simpletuner.configuration.fields import OptionInfo, describe_all
from simpletuner.configuration.paths import local_path
from simpletuner.configuration.problems import Problem
from simpletuner.configuration.validation import build
from simpletuner.webui.draft import dataset_place
from simpletuner.webui.pages.fields import FieldView, Section, show_offered
from simpletuner.webui.pages.layout import Look, icon_button, tagged
from simpletuner.webui.workspace import DatasetDraft, free_name

ENTRY_OPTIONS = {info.name: info for info in describe_all(DatasetEntry)}
VIDEO_OPTIONS = {info.name: info for info in describe_all(VideoOptions)}
_VIDEO = "video"
# What can't be chosen: there is one kind of it.
_ONLY_ONE = frozenset(
    name for name, info in ENTRY_OPTIONS.items() if info.choices is not None and len(info.choices) == 1
)


def new_entry(entries: Sequence[Mapping[str, Any]], media: str) -> dict[str, Any]:
    """A data set to fill in, with a name that none of the others has."""
    return {"id": free_name(entries, "data"), "dataset_type": media, "instance_data_dir": ""}


class DatasetCard:
    """The fields of one data set."""

    def __init__(self, number: int, entry: dict[str, Any], look: Look, on_change: Callable[[], None]) -> None:
        self.entry = entry
        self._on_change = on_change
        self._look = look
        self.fields: dict[str, FieldView] = {}
        with ui.element("div").classes("fields"):
            for name, info in ENTRY_OPTIONS.items():
                if name != _VIDEO and not (name in _ONLY_ONE and entry.get(name) in (None, info.default)):
                    self._field(name, info, number, partial(self._set, entry))
        self._video = Section(look.words(ENTRY_OPTIONS[_VIDEO].label))
        with self._video.grid:
            for name, info in VIDEO_OPTIONS.items():
                self._video.add(self._field(f"{_VIDEO}.{name}", info, number, self._set_video))
        self.show()

    def _field(self, key: str, info: OptionInfo, number: int, on_change: Callable[[str, Any], None]) -> FieldView:
        field = self.fields[key] = FieldView(info, self._look, on_change, name=f"dataset_{number}_{key}")
        return field

    def _set(self, owner: dict[str, Any], name: str, value: Any) -> None:
        if value is None:
            owner.pop(name, None)
        else:
            owner[name] = value
        self._offer()
        self._on_change()

    def _set_video(self, name: str, value: Any) -> None:
        video = self.entry.get(_VIDEO)
        owner = video if isinstance(video, dict) else {}
        self.entry[_VIDEO] = owner
        if value is None:
            owner.pop(name, None)
        else:
            owner[name] = value
        if not owner:
            del self.entry[_VIDEO]
        self._on_change()

    def show(self) -> None:
        """Show the entry's values."""
        for key, field in self.fields.items():
            owner = self.entry.get(_VIDEO) if key.startswith(f"{_VIDEO}.") else self.entry
            field.show(owner.get(field.info.name) if isinstance(owner, dict) else None)
        self._offer()

    def _offer(self) -> None:
        """Show the fields that have an effect, and what is set although it has none."""
        valid = build(DatasetEntry, self.entry)[0]
        reasons = {name: unmet_dependency(name, valid, ENTRY_OPTIONS) for name in ENTRY_OPTIONS}
        for name, field in self.fields.items():
            if name in reasons:
                field.container.set_visibility(reasons[name] is None or name in self.entry)
        clips = reasons[_VIDEO] is None or _VIDEO in self.entry
        show_offered(self._video.fields, self._video.container, lambda field: clips)

    def show_problems(self, problems: Mapping[str, list[Problem]]) -> None:
        """Tell what is wrong beside each field."""
        for key, field in self.fields.items():
            field.show_problems(problems.get(key, []))


class DatasetCards:
    """The cards of a list, and what can be done with them.

    Args:
        on_change: hears of every edit.
        on_make: sets ``data_backend_config`` to a new list of the project's own.
        media: what a new data set holds, "image" or "video".
    """

    def __init__(
        self, look: Look, on_change: Callable[[], None], on_make: Callable[[], None], media: Callable[[], str]
    ) -> None:
        self._look = look
        self._on_change = on_change
        self._media = media
        self._removed: tuple[int, dict[str, Any]] | None = None
        self._draft = DatasetDraft("", None)
        self.cards: list[DatasetCard] = []
        words = look.words
        with ui.column().classes("w-full").style("gap: 0.5rem"):
            ui.label(words("List of data sets")).classes("text-subtitle2 q-mt-sm").props(
                'role="heading" aria-level="2"'
            )
            self._reason = tagged(ui.label().classes("amber"), "datasets_reason")
            self._make = ui.button(words("Make a list of data sets"), icon="add", on_click=on_make)
            tagged(self._make.props("outline"), "datasets_make")
            self._list = ui.column().classes("w-full").style("gap: 0.5rem")
            with ui.row().classes("items-center") as self._undo:
                self._undo_text = ui.label()
                tagged(
                    ui.button(words("Undo"), icon="undo", on_click=self._put_back).props("flat dense"), "datasets_undo"
                )
            self._add = ui.button(words("Add a data set"), icon="add", on_click=self._new)
            tagged(self._add.props("outline"), "datasets_add")
        self.show(self._draft)

    def show(self, draft: DatasetDraft) -> None:
        """Show a list from the beginning."""
        self._draft = draft
        self._removed = None
        self._build()

    def _build(self) -> None:
        draft = self._draft
        self._reason.set_text(draft.reason)
        self._reason.set_visibility(bool(draft.reason))
        self._make.set_visibility(not draft.named)
        self._add.set_visibility(draft.editable)
        self._list.clear()
        with self._list:
            self.cards = [self._card(number, entry) for number, entry in enumerate(draft.entries)]
        self._undo.set_visibility(self._removed is not None)
        if self._removed is not None:
            name = self._removed[1].get("id") or ""
            self._undo_text.set_text(self._look.words("Removed {name}.").format(name=name))

    def _card(self, number: int, entry: dict[str, Any]) -> DatasetCard:
        words = self._look.words
        with tagged(ui.card().classes("w-full").props("flat bordered"), f"dataset_{number}"):
            with ui.row().classes("w-full items-center no-wrap").style("gap: 0.25rem"):
                title = words("Data set {number}").format(number=number + 1)
                ui.label(title).classes("text-weight-medium col").props('role="heading" aria-level="3"')
                duplicate = icon_button("content_copy", words("Duplicate"), partial(self._duplicate, number))
                tagged(duplicate, f"dataset_{number}_duplicate")
                remove = icon_button("delete_outline", words("Remove"), partial(self._remove, number))
                tagged(remove, f"dataset_{number}_remove")
            return DatasetCard(number, entry, self._look, self._on_change)

    def _changed(self) -> None:
        self._build()
        self._on_change()

    def _new(self) -> None:
        self._draft.entries.append(new_entry(self._draft.entries, self._media()))
        self._changed()

    def _duplicate(self, number: int) -> None:
        entries = self._draft.entries
        twin = copy.deepcopy(entries[number])
        twin["id"] = free_name(entries, str(twin.get("id") or "data"))
        entries.insert(number + 1, twin)
        self._changed()

    def _remove(self, number: int) -> None:
        self._removed = (number, self._draft.entries.pop(number))
        self._changed()

    def _put_back(self) -> None:
        if self._removed is not None:
            number, entry = self._removed
            self._draft.entries.insert(number, entry)
            self._removed = None
            self._changed()

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Tell what is wrong beside each field of each card."""
        path = local_path(self._draft.named)
        for number, card in enumerate(self.cards):
            name = str(card.entry.get("id") or f"entry {number + 1}")
            told: dict[str, list[Problem]] = {}
            for problem in problems:
                place = dataset_place(problem, path)
                if place is not None and place[0] == name:
                    told.setdefault(place[1], []).append(problem)
            card.show_problems(told)

    def field_of(self, problem: Problem) -> FieldView | None:
        """The field that a problem is about."""
        place = dataset_place(problem, local_path(self._draft.named))
        if place is None:
            return None
        for number, card in enumerate(self.cards):
            if str(card.entry.get("id") or f"entry {number + 1}") == place[0] and place[1] in card.fields:
                return card.fields[place[1]]
        return None
