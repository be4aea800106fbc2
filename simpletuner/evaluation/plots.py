"""Figures of a comparison: curves of several arms over training steps, and grids of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

# Okabe and Ito's colours, told apart with any colour vision; line and marker differ as well, for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", "-", "--")
GRID_COLOUR = "#DDDDDD"


@dataclass(frozen=True)
class Curve:
    """One measure of one arm: `steps` (n,) and `values` (seeds, n); NaN where a seed has no value."""

    steps: Sequence[float]
    values: Sequence[Sequence[float]]

    def array(self) -> np.ndarray:
        """`values` as float64 `(seeds, n)`; raises ValueError if a row is not as long as `steps`."""
        lengths = {len(row) for row in self.values}
        if lengths != {len(self.steps)}:
            raise ValueError(f"{len(self.steps)} steps but rows of {sorted(lengths)} values; give one a step")
        return np.asarray(self.values, dtype=np.float64)


@dataclass(frozen=True)
class Panel:
    """One set of axes: a measure, its arms, and how to read it.

    Attributes:
        title: what is measured.
        curves: arm name -> curve; colours follow the order of the arms given to `plot_curves`.
        better: "lower", "higher" or "" where neither is.
        log: logarithmic scale; for distances.
        level: draws a line here, e.g. the baseline's final value.
        xlabel: what `steps` of the curves are.
        ticks: names of the steps 0, 1, .. where they are places and not numbers.
    """

    title: str
    curves: Mapping[str, Curve]
    better: str = ""
    log: bool = False
    level: float | None = None
    xlabel: str = "step"
    ticks: Sequence[str] = ()


def plot_curves(
    path: Path, panels: Sequence[Panel], *, title: str = "", columns: int = 2, arms: Sequence[str] = ()
) -> Path:
    """Writes a PNG with one set of axes a panel: the mean over seeds as a line, their range as a band. Returns `path`.

    An arm has the same colour, line and marker in every panel. Panels without a curve are left out.

    Args:
        arms: all arms of several figures, in one order, so that they look alike in all; those not drawn here are
            left out of the legend.

    Raises:
        ValueError: no panel has a curve.
    """
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        raise ValueError(f"{path}: there is no curve to draw")
    arms = list(dict.fromkeys([*arms, *(name for panel in panels for name in panel.curves)]))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.5 * rows + 0.7), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, arms)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawn = [arm for arm in arms if arm in handles]
    figure.legend(
        [handles[arm] for arm in drawn], drawn, loc="outside lower center", ncols=min(len(drawn), 4), frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def plot_bars(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]], *, columns: int = 3) -> Path:
    """Writes a PNG with one set of axes a measure: a bar an arm, the mean over its runs, and a dot a run.

    Args:
        panels: measure -> arm -> its values, one a run; every panel has the same arms, with no values where a measure
            wasn't taken.

    Raises:
        ValueError: there is no value.
    """
    panels = {name: arms for name, arms in panels.items() if any(arms.values())}
    if not panels:
        raise ValueError(f"{path}: there is no value to draw")
    columns = min(columns, len(panels))
    rows, arms = -(-len(panels) // columns), len(next(iter(panels.values())))
    longest = max(len(arm) for panel in panels.values() for arm in panel)
    size = (columns * (2.6 + 0.07 * longest), rows * (0.9 + 0.32 * arms))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(grid, panels.items(), strict=False):
        for place, numbers in enumerate(values.values()):
            if numbers:
                axes.barh(place, float(np.mean(numbers)), color=COLOURS[place % len(COLOURS)], alpha=0.55, height=0.6)
                axes.plot(numbers, [place] * len(numbers), "o", color="#222222", markersize=3.5, clip_on=False)
        axes.set_yticks(range(len(values)), list(values), fontsize=8)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_title(name, fontsize=10)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color=GRID_COLOUR, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def plot_points(path: Path, panels: Mapping[str, np.ndarray], *, labels: Sequence[str] | None = None) -> Path:
    """Writes a PNG with one map of points a panel. Returns `path`.

    Args:
        panels: name -> places `(n, 2)`; the axes mean nothing and are left out.
        labels: of the points, the same in every panel: told apart by colour, and by marker beyond six.

    Raises:
        ValueError: there is no panel, or one has another number of points than there are labels.
    """
    if not panels:
        raise ValueError(f"{path}: there is no map to draw")
    names = [""] if labels is None else sorted(set(labels))
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.6 * rows + 0.6), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, places) in zip(grid, panels.items(), strict=False):
        of = np.asarray([""] * len(places) if labels is None else labels)
        if of.shape != (len(places),):
            raise ValueError(f"{path}: {title} has {len(places)} points and {len(of)} labels")
        for index, name in enumerate(names):
            shown = places[of == name]
            style = index % len(COLOURS)
            marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
            axes.scatter(shown[:, 0], shown[:, 1], s=9, c=COLOURS[style], marker=marker, linewidths=0, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GRID_COLOUR)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if labels is not None:
        handles, _ = grid[0].get_legend_handles_labels()
        per_line = max(1, int(columns * 3.6 / (0.5 + 0.085 * max(map(len, names)))))
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(len(names), per_line), frameon=False, markerscale=2.5
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def plot_samples(
    path: Path,
    rows: Mapping[str, Tensor],
    *,
    columns: Sequence[str] | None = None,
    title: str = "",
    inches: float = 0.75,
) -> Path:
    """Writes a PNG with one labelled block of images an arm. Returns `path`.

    Args:
        rows: arm name -> images `(n, C, H, W)` in [0, 1], C 1 or 3; shown in lines of `len(columns)` images.
        columns: names above the columns, e.g. the classes; without them all images of an arm lie in one line.
        inches: side of an image.

    Raises:
        ValueError: nothing to draw, or images of another shape.
    """
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if not shapes or any(len(shape) != 4 or shape[0] == 0 or shape[1] not in (1, 3) for shape in shapes.values()):
        raise ValueError(f"{path}: images must be (n, 1 or 3, H, W) with n at least 1, got {shapes}")
    per_line = len(columns) if columns else max(len(images) for images in rows.values())
    blocks = {name: tile(images, per_line) for name, images in rows.items()}
    lines = sum(-(-len(images) // per_line) for images in rows.values())
    size = (inches * per_line + 1.2, inches * lines + 0.3 * len(blocks) + 0.9)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    heights = [block.shape[0] for block in blocks.values()]
    grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights).ravel()
    for place, (axes, (name, block)) in enumerate(zip(grid, blocks.items(), strict=True)):
        axes.imshow(block, cmap="gray", vmin=0, vmax=1, interpolation="auto")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        if columns and place == 0:
            width = block.shape[1] / per_line
            axes.xaxis.set_ticks_position("top")
            axes.set_xticks([(index + 0.5) * width for index in range(per_line)], columns, rotation=45, ha="left")
            axes.tick_params(length=0, labelsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def tile(images: Tensor, per_line: int, *, gap: int = 2) -> np.ndarray:
    """Images `(n, C, H, W)` in [0, 1] in lines of `per_line` on white, as `(rows, columns)` or `(rows, columns, 3)`."""
    count, channels, height, width = images.shape
    lines = -(-count // per_line)
    canvas = np.ones((lines * (height + gap) - gap, per_line * (width + gap) - gap, channels), np.float32)
    pixels = images.detach().cpu().float().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for index, image in enumerate(pixels):
        row, column = divmod(index, per_line)
        top, left = row * (height + gap), column * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas[..., 0] if channels == 1 else canvas


def _draw_panel(axes: Axes, panel: Panel, arms: Sequence[str]) -> None:
    for name, curve in panel.curves.items():
        style = arms.index(name) % len(COLOURS)
        values = curve.array()
        steps = np.asarray(curve.steps, dtype=np.float64)
        known = ~np.isnan(values).all(axis=0)
        steps, values = steps[known], values[:, known]
        marker = MARKERS[style] if len(steps) <= 30 else ""
        axes.plot(
            steps,
            np.nanmean(values, axis=0),
            color=COLOURS[style],
            linestyle=LINES[style],
            marker=marker,
            markersize=4.5,
            linewidth=1.8,
            label=name,
        )
        if len(values) > 1:
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            axes.fill_between(steps, low, high, color=COLOURS[style], alpha=0.18, linewidth=0)
    if panel.level is not None:
        axes.axhline(panel.level, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
    if panel.log:
        axes.set_yscale("log")
        # Plain numbers at 1, 2 and 5: a distance seldom spans the decades that the default labels need.
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    hint = f" ({panel.better} is better)" if panel.better else ""
    axes.set_title(panel.title + hint, fontsize=10)
    axes.set_xlabel(panel.xlabel, fontsize=9)
    axes.tick_params(labelsize=8)
    if panel.ticks:
        few = max(1, -(-len(panel.ticks) // 14))  # more names would overlap
        axes.set_xticks(range(0, len(panel.ticks), few), panel.ticks[::few], fontsize=7)
    axes.grid(color=GRID_COLOUR, linewidth=0.7, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
