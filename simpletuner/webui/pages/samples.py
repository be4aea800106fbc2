"""Validation samples: images and clips of a step, with a slider over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from simpletuner.webui import wording
from simpletuner.webui.pages.building import Section
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.pages.snapshot import Picture


def picture(shown: Picture, run_id: str, look: Look, *, name: str) -> None:
    """A validation sample; a click on an image opens it as large as it is."""
    words = look.words("Sample {number} of step {step}")
    alt = words.format(number=shown.number + 1, step=wording.count(shown.step, look.language))
    address = shown.address(run_id)
    if shown.is_video:
        video = tagged(ui.element("video"), name).style("width: 100%").props("controls loop muted playsinline")
        video.props["src"], video.props["aria-label"] = address, alt
        return
    with ui.link(target=address, new_tab=True):
        image = tagged(ui.element("img"), name).style("width: 100%; display: block").props("loading=lazy")
        image.props["src"], image.props["alt"] = address, alt


class StepSlider:
    """A slider over steps: it stands at the newest, and follows new ones unless it was moved back.

    `on_change` is called with the step when it changes.
    """

    def __init__(self, look: Look, name: str, on_change: Callable[[int], None]) -> None:
        self._look, self._on_change = look, on_change
        self._steps: list[int] = []
        self._step: int | None = None
        self._follows = True
        self._row = ui.row().classes("items-center no-wrap")
        with self._row.style("gap: 1rem; flex: 1 1 14rem; min-width: 12rem; padding-right: 0.75rem"):
            self._label = tagged(ui.label(), f"{name}_step").classes("text-no-wrap")
            self._slider = tagged(ui.slider(min=0, max=1, step=1, value=0, on_change=self._moved), name).props("snap")
            self._slider.props["aria-label"] = look.words("Step of the samples")

    def offer(self, steps: Sequence[int]) -> None:
        """Sets the steps to choose from, in order; where the chosen one is gone the nearest is taken."""
        if list(steps) == self._steps:
            return
        self._steps = list(steps)
        self._row.set_visibility(bool(steps))
        if not steps:
            self._step = None
            return
        wanted = steps[-1] if self._follows or self._step is None else self._step
        chosen = min(steps, key=lambda step: abs(step - wanted))
        follows, changed = self._follows, chosen != self._step
        self._step = chosen
        self._slider.set_visibility(len(steps) > 1)
        self._slider.props["max"] = max(1, len(steps) - 1)
        self._slider.value = self._steps.index(chosen)
        self._slider.update()
        self._follows = follows  # it was the steps that moved, not the reader
        self._label_step()
        if changed:
            self._on_change(chosen)

    @property
    def step(self) -> int | None:
        """The chosen step; None where there is none."""
        return self._step

    def _moved(self) -> None:
        place = min(int(self._slider.value), len(self._steps) - 1)
        if place < 0 or self._steps[place] == self._step:
            return
        self._step = self._steps[place]
        self._follows = place == len(self._steps) - 1
        self._label_step()
        self._on_change(self._step)

    def _label_step(self) -> None:
        step = wording.count(self._step, self._look.language)
        self._label.text = self._look.words("Step {step}").format(step=step)
        self._slider.props["aria-valuetext"] = self._label.text


class Gallery(Section):
    """The validation samples of a step, with a slider over the steps."""

    def __init__(self, look: Look, run_id: str) -> None:
        super().__init__(look.words("Validation samples"), "samples")
        self._look, self._run_id = look, run_id
        self._pictures: tuple[Picture, ...] = ()
        self._drawn: tuple[Picture, ...] = ()
        with self.head:
            self._slider = StepSlider(look, "sample_slider", lambda step: self._draw())
        with self.body:
            self._grid = ui.element("div").classes("w-full")
            self._grid.style("display: grid; gap: 0.5rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr))")

    def show(self, pictures: tuple[Picture, ...]) -> None:
        """Shows the samples that there are now."""
        if pictures == self._pictures:
            return
        self._pictures = pictures
        self.column.set_visibility(bool(pictures))
        self._slider.offer(sorted({shown.step for shown in pictures}))
        self._draw()

    def _draw(self) -> None:
        chosen = tuple(shown for shown in self._pictures if shown.step == self._slider.step)
        if chosen == self._drawn:
            return
        self._drawn = chosen
        self._grid.clear()
        with self._grid:
            for shown in chosen:
                picture(shown, self._run_id, self._look, name="sample")
