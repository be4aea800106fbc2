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
    """

    title: str
    curves: Mapping[str, Curve]
    better: str = ""
    log: bool = False
    level: float | None = None


def plot_curves(path: Path, panels: Sequence[Panel], *, title: str = "", columns: int = 2) -> Path:
    """Writes a PNG with one set of axes a panel: the mean over seeds as a line, their range as a band. Returns `path`.

    An arm has the same colour, line and marker in every panel. Panels without a curve are left out.

    Raises:
        ValueError: no panel has a curve.
    """
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        raise ValueError(f"{path}: there is no curve to draw")
    arms = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.5 * rows + 0.7), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, arms)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [handles[arm] for arm in arms], arms, loc="outside lower center", ncols=min(len(arms), 4), frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def plot_samples(
    path: Path, rows: Mapping[str, Tensor], *, columns: Sequence[str] | None = None, title: str = ""
) -> Path:
    """Writes a PNG with one labelled block of images an arm. Returns `path`.

    Args:
        rows: arm name -> images `(n, C, H, W)` in [0, 1], C 1 or 3; shown in lines of `len(columns)` images.
        columns: names above the columns, e.g. the classes; without them all images of an arm lie in one line.

    Raises:
        ValueError: nothing to draw, or images of another shape.
    """
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if not shapes or any(len(shape) != 4 or shape[0] == 0 or shape[1] not in (1, 3) for shape in shapes.values()):
        raise ValueError(f"{path}: images must be (n, 1 or 3, H, W) with n at least 1, got {shapes}")
    per_line = len(columns) if columns else max(len(images) for images in rows.values())
    blocks = {name: tile(images, per_line) for name, images in rows.items()}
    lines = sum(-(-len(images) // per_line) for images in rows.values())
    size = (0.75 * per_line + 1.2, 0.75 * lines + 0.3 * len(blocks) + 0.9)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    heights = [block.shape[0] for block in blocks.values()]
    grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights).ravel()
    for place, (axes, (name, block)) in enumerate(zip(grid, blocks.items(), strict=True)):
        axes.imshow(block, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
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
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID_COLOUR, linewidth=0.7, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
