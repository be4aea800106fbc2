"""A run as it goes: state, progress, charts, samples, checkpoints, log. All of it is read from the disk every time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import run as background
from nicegui import ui

from simpletuner.webui.pages.building import Section
from simpletuner.webui.pages.charts import Row, chart_options, run_lines, shown_groups, titles
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.pages.run_parts import Checkpoints, Evaluations, LogPane, MachinePane, StateLine, log_text
from simpletuner.webui.pages.run_words import progress_words, state_words
from simpletuner.webui.pages.samples import Gallery
from simpletuner.webui.pages.snapshot import Seen, Snapshot, collect
from simpletuner.webui.runs import RunError, RunNotFound
from simpletuner.webui.site import Site

# Seconds between two looks at a run that goes, and at one that has ended but may be resumed elsewhere.
BUSY, IDLE = 1.0, 5.0
SMOOTHING = 0.6
BANNER_LINES = 15

OnSnapshot = Callable[[Snapshot], None]
Resume = Callable[[], Awaitable[None]]
# Of charts, by name.
Options = dict[str, dict[str, Any]]


def live_view(
    site: Site, look: Look, run_id: str, *, resume: Resume | None = None, on_snapshot: OnSnapshot | None = None
) -> LiveView:
    """Builds the view of a run, which keeps itself up to date.

    Args:
        resume: what the button does that a failed run shows, where it can be resumed.
        on_snapshot: called with every snapshot, for what else on the page depends on the run.
    """
    return LiveView(site, look, run_id, resume, on_snapshot)


class LiveView:
    """The elements of a run's view, and the timer that brings them up to date."""

    def __init__(
        self, site: Site, look: Look, run_id: str, resume: Resume | None, on_snapshot: OnSnapshot | None
    ) -> None:
        self._site, self._look, self._run_id = site, look, run_id
        self._resume, self._on_snapshot = resume, on_snapshot
        self._seen: Seen | None = None
        self.active = False  # as of the last look
        with tagged(ui.column().classes("w-full"), "live_view").style("gap: 0.75rem"):
            with ui.column().classes("w-full").style("gap: 0.25rem"):
                self._state = StateLine(look)
                self._bar = tagged(ui.linear_progress(0, show_value=False), "progress_bar").props("instant-feedback")
                self._bar.props["aria-label"] = look.words("Progress")
                self._progress = tagged(ui.label(), "progress_text").classes("text-body2 faint")
            self._banner = Banner(look, resume)
            self._charts = Charts(look)
            self._evaluations = Evaluations(look)
            self._gallery = Gallery(look, run_id)
            self._checkpoints = Checkpoints(look, run_id)
            self._log = LogPane(look)
            self._machine = MachinePane(look)
            self.timer = ui.timer(BUSY, self.refresh)

    async def refresh(self) -> None:
        """Reads the run in a thread, and shows what has changed."""
        try:
            found = await background.io_bound(self._read, self._charts.smoothing)
        except RunError as error:
            self._state.fail(str(error))
            self.timer.interval = IDLE
            if isinstance(error, RunNotFound):  # forgotten meanwhile
                self.timer.cancel()
            return
        if found is not None:  # else the server is about to end
            self._show(*found)

    def _read(self, smoothing: float) -> tuple[Snapshot, Options]:
        snapshot = collect(self._site, self._run_id, self._seen)
        return snapshot, run_charts(snapshot.rows or (), smoothing, self._look)

    def _show(self, snapshot: Snapshot, charts: Options) -> None:
        progress, look = snapshot.progress, self._look
        self._seen, self.active = snapshot.seen, snapshot.active
        self._state.show(snapshot.run)
        has_steps = snapshot.run.command == "train"
        self._bar.set_visibility(has_steps)
        self._progress.set_visibility(has_steps)
        share = progress.step / progress.total if progress.total else 0.0
        words = progress_words(progress, look, active=snapshot.active)
        if self._progress.text != words:
            self._progress.text, self._bar.value = words, min(1.0, share)
        self._banner.show(snapshot)
        if snapshot.rows is not None:
            self._charts.show(snapshot.rows, charts)
        self._evaluations.show(snapshot.evaluations)
        self._gallery.show(snapshot.pictures)
        self._checkpoints.show(snapshot.checkpoints)
        self._log.show(snapshot.log)
        self._machine.show(snapshot.machine)
        self.timer.interval = BUSY if snapshot.active else IDLE
        if self._on_snapshot is not None:
            self._on_snapshot(snapshot)


class Banner:
    """Says that a run failed or was killed, with the end of its log and a way to go on."""

    def __init__(self, look: Look, resume: Resume | None) -> None:
        self._look, self._shown = look, ""
        with tagged(ui.card().classes("w-full"), "failure") as self._card:
            self._card.style("border: 1px solid var(--q-negative); gap: 0.5rem; padding: 0.75rem").props(
                "flat role=alert"
            )
            self._headline = ui.label().classes("text-negative text-weight-medium")
            self._lines = tagged(log_text(""), "failure_log")
            self._button = tagged(ui.button(look.words("Resume"), icon="play_arrow", on_click=resume), "failure_resume")
        self._can_resume = resume is not None
        self._card.set_visibility(False)

    def show(self, snapshot: Snapshot) -> None:
        """Shows or hides itself, as the run's state is."""
        broken = snapshot.run.state in ("failed", "killed")
        self._card.set_visibility(broken)
        self._button.set_visibility(broken and self._can_resume and snapshot.resumable)
        if broken:
            headline = self._look.words("The run ended before its time: {state}").format(
                state=state_words(snapshot.run, self._look)
            )
            lines = "\n".join(snapshot.log.rstrip().splitlines()[-BANNER_LINES:])
            if (self._headline.text, self._lines.text) != (headline, lines):
                self._headline.text, self._lines.text = headline, lines


class Charts(Section):
    """The charts of a run's metrics, with a slider for how much their lines are smoothed."""

    def __init__(self, look: Look) -> None:
        super().__init__(look.words("Metrics"), "metrics")
        self._look = look
        self._rows: Sequence[Row] = ()
        with self.head:
            self._smoothing = smoothing_slider(look, self._draw)
        with self.body:
            self._grid = ChartGrid(look)

    @property
    def smoothing(self) -> float:
        """How much lines are smoothed now, in [0, 1)."""
        return float(self._smoothing.value)

    def show(self, rows: Sequence[Row], charts: Options) -> None:
        """Shows the charts of these rows."""
        self._rows = rows
        self.column.set_visibility(bool(charts))
        self._grid.show(charts)

    def _draw(self) -> None:
        self._grid.show(run_charts(self._rows, self.smoothing, self._look))


def run_charts(rows: Sequence[Row], smoothing: float, look: Look) -> Options:
    """The options of the charts of a run's rows; it computes for some milliseconds."""
    _, charts = look.words, {}
    for group, metrics in shown_groups(rows).items():
        charts[group] = chart_options(
            run_lines(rows, group, metrics, smoothing, _),
            x_name=_("Step"),
            y_name=titles(_).get(group, group),
            dark=look.dark,
            language=look.language,
        )
    return charts


class ChartGrid:
    """Charts beside each other: two in a row, one on a phone."""

    def __init__(self, look: Look) -> None:
        self._charts: dict[str, ui.echart] = {}
        self._grid = (
            ui.element("div")
            .classes("w-full")
            .style("display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr))")
        )

    def show(self, charts: Options) -> None:
        """Shows these options of charts, in their order; a chart that is there already is kept and changed."""
        for gone in self._charts.keys() - charts.keys():
            self._charts.pop(gone).delete()
        for place, (name, options) in enumerate(charts.items()):
            chart = self._charts.get(name)
            if chart is None:
                with self._grid:
                    chart = self._charts[name] = tagged(ui.echart(options), f"chart_{name}")
                chart.classes("w-full").style(f"height: 15rem; min-width: 0; order: {place}").props("role=img")
            elif chart.options != options:
                chart.options.clear()
                chart.options.update(options)
                chart.style(f"order: {place}")
                chart.update()
            chart.props["aria-label"] = options["aria"]["label"]["description"]


def smoothing_slider(look: Look, on_change: Callable[[], Any]) -> ui.slider:
    """A slider from 0 (as measured) to nearly 1."""
    with ui.row().classes("items-center no-wrap").style("gap: 1rem; flex: 1 1 14rem; max-width: 22rem"):
        ui.label(look.words("Smoothing")).classes("text-no-wrap")
        slider = ui.slider(min=0, max=0.98, step=0.02, value=SMOOTHING, on_change=on_change).props("label")
    slider.props["aria-label"] = look.words("Smoothing")
    return tagged(slider, "smoothing")
