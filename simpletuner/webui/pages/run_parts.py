"""The parts of a run's page: its state, evaluations, checkpoints, log, machine."""

from __future__ import annotations

from functools import partial
from typing import Any

from nicegui import ui

from simpletuner.webui import wording
from simpletuner.webui.pages.building import Section, cells, table
from simpletuner.webui.pages.charts import EVALUATION, Row
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.pages.run_words import STATE_LOOKS, machine_measures, state_words
from simpletuner.webui.runs import Run
from simpletuner.webui.watch import Checkpoint


class StateLine:
    """A run's state as an icon and words; `live`: a screen reader is told of changes."""

    def __init__(self, look: Look, *, name: str = "run_state", live: bool = True) -> None:
        self._look = look
        with ui.row().classes("items-center no-wrap").style("gap: 0.4rem"):
            self._icon = ui.icon("hourglass_empty", size="1.5rem").props("aria-hidden=true")
            self._label = tagged(ui.label(look.words("Loading …")), name).classes("text-weight-medium")
            if live:
                self._label.props("role=status")

    def show(self, run: Run) -> None:
        """Shows the state as it is now."""
        icon, colour = STATE_LOOKS[run.state]
        words = state_words(run, self._look)
        if self._label.text != words or self._icon.name != icon:
            self._icon.name = icon
            self._icon.classes(replace=colour)
            self._label.text = words

    def fail(self, words: str) -> None:
        """Says that there is no state, and why."""
        self._icon.name = "help"
        self._icon.classes(replace="faint")
        self._label.text = words


class Evaluations(Section):
    """The measures of the evaluations, the latest first."""

    def __init__(self, look: Look) -> None:
        super().__init__(look.words("Evaluations"), "evaluations")
        self._look = look
        self._shown: tuple[Row, ...] = ()

    def show(self, rows: tuple[Row, ...]) -> None:
        """Shows these rows of `eval_*` measures."""
        if rows == self._shown:
            return
        self._shown = rows
        self.column.set_visibility(bool(rows))
        names = list(dict.fromkeys(name for row in rows for name in row if name.startswith(EVALUATION)))
        headings = [name.removeprefix(EVALUATION).replace("_", " ") for name in names]
        self.body.clear()
        with self.body, table([self._look.words("Step"), *headings], "evaluation_table"):
            for row in reversed(rows):
                figures = [wording.number(row.get(name), self._look.language) for name in names]
                cells([wording.count(row["step"], self._look.language), *figures], heading=True)


class Checkpoints(Section):
    """The checkpoints, the latest first, each with what can be taken out of it."""

    def __init__(self, look: Look, run_id: str) -> None:
        super().__init__(look.words("Checkpoints"), "checkpoints")
        self._look, self._run_id = look, run_id
        self._shown: tuple[Checkpoint, ...] = ()

    def show(self, found: tuple[Checkpoint, ...]) -> None:
        """Shows the checkpoints that there are now."""
        if found == self._shown:
            return
        self._shown = found
        _ = self._look.words
        self.column.set_visibility(bool(found))
        self.body.clear()
        headings = [_("Step"), _("File size"), _("State"), _("Export")]
        with self.body, table(headings, "checkpoint_table"):
            for checkpoint in reversed(found):
                state = _("Whole") if checkpoint.intact else _("Incomplete")
                step = wording.count(checkpoint.step, self._look.language)
                size = wording.size(checkpoint.bytes, self._look.language)
                cells([step, size, state, partial(self._export, checkpoint)], heading=True)

    def _export(self, checkpoint: Checkpoint) -> None:
        if not (checkpoint.intact and checkpoint.files):
            ui.label(wording.NOTHING)
            return
        button = ui.button(self._look.words("Export"), icon="download").props("flat dense no-caps size=sm")
        tagged(button, f"export_{checkpoint.step}")
        button.props["href"] = f"/api/v1/runs/{self._run_id}/checkpoints/{checkpoint.step}/export"
        button.props["download"] = True
        button.props["aria-label"] = self._look.words("Export the weights of step {step}").format(step=checkpoint.step)


class LogPane(Section):
    """The end of a run's log. It stays at the end as lines come, unless one has scrolled up."""

    def __init__(self, look: Look) -> None:
        super().__init__(look.words("Log"), "log")
        with self.body:
            # Laid out from the bottom: so browsers keep the end in view themselves, and what is above where it is.
            area = ui.element("div").classes("w-full rounded-borders")
            area.style(
                "display: flex; flex-direction: column-reverse; max-height: 20rem; overflow: auto; padding: 0.5rem; "
                "border: 1px solid rgba(128, 128, 128, 0.4)"
            )
            area.props("tabindex=0 role=region")
            area.props["aria-label"] = look.words("Log")
            with area:
                self._text = tagged(log_text(""), "log_text")

    def show(self, text: str) -> None:
        """Shows this text."""
        self.column.set_visibility(bool(text))
        if text != self._text.text:
            self._text.text = text


def log_text(text: str) -> ui.label:
    """Lines of a log, in a font of fixed width."""
    style = "white-space: pre-wrap; overflow-wrap: anywhere; font: 0.75rem/1.4 ui-monospace, monospace"
    return ui.label(text).style(style).classes("w-full")


class MachinePane(Section):
    """How busy the machine is that the server runs on."""

    def __init__(self, look: Look) -> None:
        super().__init__(look.words("Machine"), "machine")
        self._look = look
        self._bars: list[tuple[ui.label, ui.linear_progress]] = []
        with self.body:
            self._grid = ui.element("div").classes("fields")

    def show(self, state: dict[str, Any]) -> None:
        """Shows this state, as `machine_state` gives it."""
        measured = machine_measures(state, self._look)
        self.column.set_visibility(bool(measured))
        if len(measured) != len(self._bars):
            self._grid.clear()
            self._bars = []
            with self._grid:
                for _text, _share in measured:
                    with ui.column().classes("w-full").style("gap: 0.15rem"):
                        bar_label = ui.label().classes("text-caption")
                        bar = ui.linear_progress(0, show_value=False).props("aria-hidden=true instant-feedback")
                        self._bars.append((bar_label, bar))
        for (label, bar), (text, share) in zip(self._bars, measured, strict=True):
            if label.text != text:
                label.text = text
                bar.value = min(1.0, share)
