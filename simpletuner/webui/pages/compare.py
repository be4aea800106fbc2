"""The page `/compare?runs=a,b,c`: the curves, configurations and samples of several runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Request
from nicegui import run as background
from nicegui import ui

from simpletuner.webui import wording
from simpletuner.webui.pages.building import Section, cells, table
from simpletuner.webui.pages.charts import (
    MINUTES,
    Line,
    Row,
    chart_options,
    decimated,
    is_evaluation,
    metric_name,
    points,
    shown_groups,
    smoothed,
    titles,
    with_minutes,
)
from simpletuner.webui.pages.layout import Look, frame, look_of, tagged
from simpletuner.webui.pages.live_view import ChartGrid, Options, smoothing_slider
from simpletuner.webui.pages.past_runs import Difference, differences, run_values
from simpletuner.webui.pages.run_words import state_words
from simpletuner.webui.pages.samples import StepSlider, picture
from simpletuner.webui.pages.snapshot import Picture, pictures
from simpletuner.webui.runs import Run, RunError, is_active, read_run
from simpletuner.webui.site import Site
from simpletuner.webui.watch import metrics, samples

REFRESH = 5.0
MOST_RUNS = 12


@dataclass(frozen=True)
class Compared:
    """A run beside others: at most 400 of its rows, with the `minutes` trained until each, and its samples."""

    run: Run
    active: bool
    rows: list[Row]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Comparison:
    """What the page shows at one moment; `missing` are ids of no run."""

    runs: tuple[Compared, ...]
    missing: tuple[str, ...]
    differences: tuple[Difference, ...]


def compare(site: Site, run_ids: Sequence[str]) -> Comparison:
    """Reads the runs, in this order and each once; it reads files."""
    found: list[Compared] = []
    missing = []
    for run_id in dict.fromkeys(run_ids):
        try:
            run = read_run(site, run_id)
        except RunError:
            missing.append(run_id)
            continue
        rows = decimated([row for row in with_minutes(metrics(run)) if not is_evaluation(row)])
        found.append(Compared(run, is_active(run), rows, pictures(samples(run))))
    differing = differences([run_values(compared.run) for compared in found]) if len(found) > 1 else []
    return Comparison(tuple(found), tuple(missing), tuple(differing))


def names_of(runs: Sequence[Run], language: str) -> list[str]:
    """What the legend calls runs: project and start; numbered where that isn't enough."""
    names = [f"{run.project} · {wording.moment(run.started, language)}" for run in runs]
    repeated = {name for name in names if names.count(name) > 1}
    return [
        f"{name} ({names[: place + 1].count(name)})" if name in repeated else name for place, name in enumerate(names)
    ]


def compared_lines(
    runs: Sequence[Compared], names: Sequence[str], group: str, *, across: str, smoothing: float, look: Look
) -> list[Line]:
    """The lines of a chart: a colour a run, in all charts the same, and a dash for its second metric.

    A run that lacks the metrics has no line.
    """
    lines = []
    for place, (compared, name) in enumerate(zip(runs, names, strict=True)):
        there = shown_groups(compared.rows).get(group, ())
        for number, metric in enumerate(there):
            line = smoothed(points(compared.rows, metric, across), smoothing)
            label = name if len(there) == 1 else f"{name} · {metric_name(metric, look.words)}"
            lines.append(Line(label, line, place, dash=min(number, 1)))
    return lines


def compared_charts(runs: Sequence[Compared], across: str, smoothing: float, look: Look) -> Options:
    """The options of the charts of several runs, over `step` or `minutes`; it computes for some milliseconds a run."""
    _, names = look.words, names_of([compared.run for compared in runs], look.language)
    groups = shown_groups(row for compared in runs for row in compared.rows)
    return {
        group: chart_options(
            compared_lines(runs, names, group, across=across, smoothing=smoothing, look=look),
            x_name=_("Minutes") if across == MINUTES else _("Step"),
            y_name=titles(_).get(group, group),
            dark=look.dark,
            language=look.language,
            legend=True,
        )
        for group in groups
    }


def common_steps(runs: Sequence[Compared]) -> list[int]:
    """The steps at which every run that has samples drew some; in order."""
    steps = [{shown.step for shown in compared.pictures} for compared in runs if compared.pictures]
    return sorted(set.intersection(*steps)) if steps else []


def register_compare(site: Site) -> None:
    """Registers `/compare`."""

    @ui.page("/compare")
    def compare_page(request: Request, runs: str = "") -> None:
        with frame(site, request, look_of(request).words("Compare runs"), active="runs") as look:
            run_ids = list(dict.fromkeys(run_id for run_id in runs.split(",") if run_id))
            if run_ids:
                ComparePage(site, look, run_ids)
            else:
                tagged(ui.label(look.words("Choose the runs to compare in the list of runs.")), "compare_none")
                ui.link(look.words("All runs"), "/runs")


class ComparePage:
    """The elements of the page. It is read again as long as one of the runs goes on."""

    def __init__(self, site: Site, look: Look, run_ids: Sequence[str]) -> None:
        self._site, self._look, self._run_ids = site, look, run_ids[:MOST_RUNS]
        self._shown: Comparison | None = None
        self._drawn: tuple[Any, ...] = ()
        self._asked = 0
        _ = look.words
        ui.label(_("Compare runs")).classes("text-h6").props("role=heading aria-level=1")
        if len(run_ids) > MOST_RUNS:
            told = _("Only the first {count} of {chosen} runs are shown.")
            told = told.format(count=MOST_RUNS, chosen=len(run_ids))
            tagged(ui.label(told), "compare_left_out").classes("amber")
        self._missing = tagged(ui.label(), "compare_missing").classes("amber")
        self._missing.set_visibility(False)
        self._runs = ui.column().classes("w-full")
        self._metrics = Section(_("Metrics"), "metrics")
        with self._metrics.head:
            axis = ui.toggle({"step": _("Steps"), MINUTES: _("Minutes")}, value="step", on_change=self._draw)
            self._axis = tagged(axis, "compare_axis").props("dense")
            self._axis.props["aria-label"] = _("Horizontal axis")
            self._smoothing = smoothing_slider(look, self._draw)
        with self._metrics.body:
            self._grid = ChartGrid(look)
        self._samples = Section(_("Validation samples"), "samples")
        with self._samples.head:
            self._slider = StepSlider(look, "sample_slider", lambda step: self._draw_samples())
        self._options = Section(_("What differs between their options"), "differences")
        self.timer = ui.timer(REFRESH, self.refresh)

    async def refresh(self) -> None:
        """Reads the runs in a thread and shows what has changed."""
        found = await background.io_bound(compare, self._site, self._run_ids)
        if found is None or found == self._shown:
            return
        before, self._shown = self._shown, found
        self._missing.set_visibility(bool(found.missing))
        self._missing.text = self._look.words("These runs are gone: {runs}").format(runs=", ".join(found.missing))
        self._draw_runs()
        await self._draw()
        steps = common_steps(found.runs)
        self._samples.column.set_visibility(any(compared.pictures for compared in found.runs))
        self._slider.offer(steps)
        self._draw_samples()
        if before is None or before.differences != found.differences:
            self._draw_differences()
        if not any(compared.active for compared in found.runs):
            self.timer.cancel()

    def _names(self) -> list[str]:
        return names_of([compared.run for compared in self._compared()], self._look.language)

    def _compared(self) -> tuple[Compared, ...]:
        return () if self._shown is None else self._shown.runs

    def _draw_runs(self) -> None:
        look, _ = self._look, self._look.words
        self._runs.clear()
        with self._runs, table([_("Run"), _("State"), _("Steps")], "compared_runs"):
            for compared, name in zip(self._compared(), self._names(), strict=True):
                address = f"/runs/{quote(compared.run.id)}"
                last = compared.rows[-1]["step"] if compared.rows else 0
                steps = wording.count(last, look.language)
                cells([partial(ui.link, name, address), state_words(compared.run, look), steps])

    async def _draw(self) -> None:
        self._asked += 1
        mine, across, smoothing = self._asked, self._axis.value, float(self._smoothing.value)
        charts = await background.io_bound(compared_charts, self._compared(), across, smoothing, self._look)
        if charts is not None and mine == self._asked:  # else the sliders have moved on meanwhile
            self._metrics.column.set_visibility(bool(charts))
            self._grid.show(charts)

    def _draw_samples(self) -> None:
        step, _ = self._slider.step, self._look.words
        drawn = (step, *(compared.pictures for compared in self._compared()))
        if drawn == self._drawn:  # a clip that plays goes on
            return
        self._drawn = drawn
        self._samples.body.clear()
        with self._samples.body:
            if step is None:
                tagged(ui.label(_("The runs have no samples of a common step.")), "no_common_step").classes("faint")
                return
            with ui.row().classes("w-full").style("gap: 0.75rem"):
                for compared, name in zip(self._compared(), self._names(), strict=True):
                    of_step = [shown for shown in compared.pictures if shown.step == step]
                    if of_step:
                        self._column(compared.run, name, of_step)

    def _column(self, run: Run, name: str, drawn: Sequence[Picture]) -> None:
        with ui.column().style("gap: 0.5rem; flex: 1 1 9rem; max-width: 16rem"):
            ui.label(name).classes("text-caption")
            for shown in drawn:
                picture(shown, run.id, self._look, name=f"sample_{run.id}")

    def _draw_differences(self) -> None:
        _, found = self._look.words, () if self._shown is None else self._shown.differences
        self._options.column.set_visibility(len(self._compared()) > 1)
        self._options.body.clear()
        with self._options.body:
            if not found:
                ui.label(_("Their options are the same."))
                return
            with table([_("Option"), *self._names()], "difference_table"):
                for difference in found:
                    values = [self._value(value) for value in difference.values]
                    cells([partial(self._option, difference), *values], heading=True)

    def _option(self, difference: Difference) -> None:
        label = self._look.words(difference.label)
        if difference.group is not None:
            label = f"{self._look.words(difference.group)}: {label}"
        ui.label(label)
        if difference.label != difference.option:
            ui.label(difference.option).classes("text-caption faint").style("font-family: monospace")

    def _value(self, value: Any) -> str:
        if value is None:
            return wording.NOTHING
        if isinstance(value, float):
            return wording.number(value, self._look.language)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
