"""The loss functions: a card for each method, with what it will do to the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from simpletuner.configuration.alignment import (
    AlignmentOptions,
    CrepaOptions,
    IrepaOptions,
    LayersyncOptions,
    PrefixedOptions,
    UrepaOptions,
)
from simpletuner.configuration.config import Config
from simpletuner.configuration.encoders import NAMED_ENCODERS
from simpletuner.configuration.family import Family
from simpletuner.configuration.fields import OptionInfo
from simpletuner.translation import marked, sentences
from simpletuner.webui import wording
from simpletuner.webui.draft import Draft, Examination
from simpletuner.webui.estimates import CacheEstimate, coefficient_curve
from simpletuner.webui.pages.charts import Line, chart_options
from simpletuner.webui.pages.fields import Change, FieldView, show_offered
from simpletuner.webui.pages.layout import Look, tagged

CARDS: tuple[type[PrefixedOptions], ...] = (CrepaOptions, UrepaOptions, IrepaOptions, LayersyncOptions)

_WHAT = {
    "crepa": marked("Aligns a transformer with a frozen vision encoder."),
    "urepa": marked("Aligns a UNet with a frozen vision encoder."),
    "irepa": marked("A convolutional projector and a spatially normalised teacher, for CREPA or U-REPA."),
    "layersync": marked("Aligns a block with a deeper block of the same model; needs no encoder."),
}


@dataclass
class Part:
    """Fields under a heading of their own, folded until one of them is set."""

    expansion: ui.expansion
    fields: list[FieldView]
    opened: bool = False


class LossCard:
    """The card of one method: its switch, its essential fields, the folded rest, and what it will do."""

    def __init__(
        self, group: type[PrefixedOptions], infos: Sequence[OptionInfo], look: Look, on_change: Change
    ) -> None:
        self.group = group
        self.fields: list[FieldView] = []
        self.parts: list[Part] = []
        self._look = look
        self._on_change = on_change
        self._switch_name = group.key("enabled")
        self._recommended: dict[str, ui.button] = {}
        self._chart: ui.echart | None = None
        with tagged(ui.card().classes("w-full").props("flat bordered"), f"card_{group.PREFIX}") as self.card:
            self._head([info for info in infos if info.name == self._switch_name])
            rest = [info for info in infos if info.name != self._switch_name]
            self._essentials = ui.element("div").classes("fields")
            with self._essentials:
                self._shown_first = [self._field(info) for info in rest if info.part is None]
            self._plan = ui.column().classes("w-full").style("gap: 0.25rem")
            for part in dict.fromkeys(info.part for info in rest if info.part is not None):
                self._part(part, [info for info in rest if info.part == part])

    def _head(self, switch: Sequence[OptionInfo]) -> None:
        words = self._look.words
        with ui.row().classes("w-full items-center justify-between").style("gap: 0 1rem"):
            with ui.column().style("gap: 0; flex: 1 1 14rem"):
                self._title = ui.label(self.group.TITLE).classes("text-h6").props('role="heading" aria-level="2"')
                self._line = ui.label(words(_WHAT[self.group.PREFIX])).classes("text-caption faint")
            with ui.element("div").style("flex: 0 1 auto; min-width: 10rem"):
                self._switch = self._field(switch[0])
        self._switch.element.props["aria-label"] = words("Enable {method}").format(method=self.group.TITLE)

    def _field(self, info: OptionInfo) -> FieldView:
        suggestions = NAMED_ENCODERS if self._is(info, "encoder") else ()
        field = FieldView(info, self._look, self._on_change, suggestions=suggestions)
        if info.name.endswith(("_block_index", "_block")):
            with field.container:
                button = ui.button(on_click=lambda: self._take(field)).props("flat dense no-caps size=sm")
            self._recommended[info.name] = tagged(button, f"recommended_{info.name}")
            button.set_visibility(False)
        self.fields.append(field)
        return field

    def _is(self, info: OptionInfo, name: str) -> bool:
        return name in self.group.model_fields and info.name == self.group.key(name)

    def _part(self, heading: str, infos: Sequence[OptionInfo]) -> None:
        expansion = ui.expansion(self._look.words(heading)).classes("w-full").props("dense dense-toggle")
        tagged(expansion, f"part_{self.group.PREFIX}_{heading.lower().replace(' ', '_')}")
        with expansion, ui.element("div").classes("fields q-pt-xs"):
            self.parts.append(Part(expansion, [self._field(info) for info in infos]))

    # What a family makes of it

    def show(self, examination: Examination, draft: Draft, offered: Callable[[FieldView], bool]) -> None:
        """Show what fits the family and has an effect."""
        family, config = examination.family, examination.config
        on = bool(getattr(config, self._switch_name))
        self.card.set_visibility(on or examination.fits(self._switch.info))
        self._name(family)
        self._switch.container.set_visibility(True)
        show_offered(self._shown_first, self._essentials, offered)
        for part in self.parts:
            show_offered(part.fields, part.expansion, offered)
            if not part.opened and any(draft.get(field.info.name) is not None for field in part.fields):
                part.opened = True
                part.expansion.open()
        for name, recommended in _recommended_blocks(family).items():
            if name in self._recommended:
                self._recommend(name, recommended, family)
        active = on and examination.fits(self._switch.info)
        options = getattr(config, self.group.PREFIX)
        self._plan.set_visibility(active and isinstance(options, AlignmentOptions))
        if active and isinstance(options, AlignmentOptions):
            self._show_plan(options, config)

    def _name(self, family: Family | None) -> None:
        words = self._look.words
        if self.group is not CrepaOptions:
            return
        title = "REPA / CREPA" if family is None or family.model_type == "unet" else family.alignment
        line = words(_WHAT["crepa"])
        if title == "REPA":
            line = sentences([words("crepa_* options; CREPA for video."), line], self._look.language)
        self._title.set_text(title)
        self._line.set_text(line)
        self._switch.element.props["aria-label"] = words("Enable {method}").format(method=title)

    def _recommend(self, name: str, block: int | None, family: Family | None) -> None:
        button, depth = self._recommended[name], None if family is None else family.depth
        field = next(field for field in self.fields if field.info.name == name)
        field.set_maximum(None if depth is None else depth - 1)
        button.set_visibility(block is not None and depth is not None)
        if block is not None and depth is not None:
            told = self._look.words("recommended: {block} of {depth}")
            button.set_text(told.format(block=block, depth=depth))
            button.props["data-block"] = str(block)

    def _take(self, field: FieldView) -> None:
        block = int(self._recommended[field.info.name].props["data-block"])
        field.show(block)
        self._on_change(field.info.name, block)

    # What it will do

    def _show_plan(self, options: AlignmentOptions, config: Config) -> None:
        words, prefix = self._look.words, self.group.PREFIX
        if self._chart is None:
            with self._plan:
                self._notes = tagged(ui.label(), f"plan_{prefix}").classes("text-caption faint")
                self._chart = tagged(ui.echart({}), f"plot_{prefix}").style("width: 100%; height: 12rem")
                self._cache = tagged(ui.label(), f"cache_{prefix}").classes("text-caption faint")
        drawn = plan_options(options, config, self._look)
        self._chart.set_visibility(drawn is not None)
        if drawn is not None and drawn != self._chart.options:
            self._chart.options.clear()
            self._chart.options.update(drawn)
            self._chart.update()
        notes = plan_notes(options, config, words)
        self._notes.set_text(sentences(notes, self._look.language))
        self._notes.set_visibility(bool(notes))

    def show_cache(self, estimate: CacheEstimate) -> None:
        """Say how large the feature cache will be."""
        if self._chart is not None:
            text = cache_note(estimate, self._look)
            self._cache.set_text(text)
            self._cache.set_visibility(bool(text))


class LossCards:
    """All cards, in the order of the methods."""

    def __init__(self, options: Mapping[str | None, Sequence[OptionInfo]], look: Look, on_change: Change) -> None:
        """``options`` are those of the loss functions, by group."""
        self.cards = [LossCard(group, options[group.TITLE], look, on_change) for group in CARDS]

    @property
    def fields(self) -> list[FieldView]:
        return [field for card in self.cards for field in card.fields]

    def show(self, examination: Examination, draft: Draft, offered: Callable[[FieldView], bool]) -> None:
        """Show the cards that fit the family, and those that are on although they don't."""
        for card in self.cards:
            card.show(examination, draft, offered)

    def show_caches(self, estimates: Mapping[str, CacheEstimate]) -> None:
        """Say how large the feature caches will be, by prefix."""
        for card in self.cards:
            if card.group.PREFIX in estimates:
                card.show_cache(estimates[card.group.PREFIX])

    def open_part_of(self, name: str) -> None:
        """Unfold the part in which a field is."""
        for card in self.cards:
            for part in card.parts:
                if any(field.info.name == name for field in part.fields):
                    part.expansion.open()


def _recommended_blocks(family: Family | None) -> dict[str, int | None]:
    """The block to begin with, by option."""
    student, teacher = (None, None) if family is None else (family.default_block, family.teaching_block)
    return {
        CrepaOptions.key("block_index"): student,
        CrepaOptions.key("teacher_block_index"): teacher,
        LayersyncOptions.key("student_block"): student,
        LayersyncOptions.key("teacher_block"): teacher,
    }


def plan_options(options: AlignmentOptions, config: Config, look: Look) -> dict[str, Any] | None:
    """The chart of the coefficient over the run; None where it can't be known."""
    words = look.words
    curve = coefficient_curve(options, config.max_train_steps)
    if curve is None:
        return None
    name = words("Weight of the loss")
    drawn = chart_options(
        [Line(name, [[step, value] for step, value in curve.points])],
        x_name=words("Step"),
        y_name=name,
        dark=look.dark,
        language=look.language,
    )
    drawn["xAxis"] |= {"min": 0, "max": config.max_train_steps}
    drawn["yAxis"] |= {"min": 0, "scale": False}
    if curve.cutoff is not None:
        ink = drawn["textStyle"]["color"]
        drawn["series"][0]["markLine"] = {
            "silent": True,
            "symbol": "none",
            "data": [{"xAxis": curve.cutoff}],
            "lineStyle": {"color": ink, "type": "dashed"},
            "label": {"formatter": words("cutoff: {step}").format(step=curve.cutoff), "color": ink},
        }
    return drawn


def plan_notes(options: AlignmentOptions, config: Config, words: Callable[[str], str]) -> list[str]:
    """What the chart can't show."""
    notes = []
    if config.max_train_steps == 0:
        if config.num_train_epochs > 0:
            notes.append(words("The run's length is set in epochs, so its number of steps isn't known yet."))
        else:
            notes.append(words("Set the training steps to see the weight over the run."))
    elif coefficient_curve(options, config.max_train_steps) is None:
        notes.append(words("The warm-up leaves no steps for the decay."))
    if options.similarity_threshold is not None:
        told = words("It ends earlier if the similarity reaches {value}.")
        notes.append(told.format(value=f"{options.similarity_threshold:g}"))
    if options.plateau_stop:
        notes.append(words("It ends earlier if the similarity stops improving."))
    return notes


def cache_note(estimate: CacheEstimate, look: Look) -> str:
    """The size of the feature cache in a sentence; empty where nothing is cached."""
    words = look.words
    if estimate.reason == "unknown encoder":
        return words("The size of the feature cache isn't known: the teacher's name doesn't tell its width.")
    if estimate.a_sample is None:
        return ""
    each = wording.size(estimate.a_sample, look.language)
    if estimate.samples is None:
        many = wording.size(1000 * estimate.a_sample, look.language)
        return words("Feature cache: about {each} a sample, {many} for 1,000 samples.").format(each=each, many=many)
    told = words("Feature cache: about {each} a sample, {total} for {samples} samples.")
    count = wording.count(estimate.samples, look.language)
    return told.format(each=each, total=wording.size(estimate.total or 0, look.language), samples=count)
