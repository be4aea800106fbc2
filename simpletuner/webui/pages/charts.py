"""Charts of a run's metrics: pure functions from rows to the options of Apache ECharts.

A row is a line of `metrics.jsonl`: numbers by name, with `step`. Whatever isn't finite becomes null, a gap in a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Row = dict[str, Any]
Points = list[list[float | None]]
Words = Callable[[str], str]

MOST_POINTS = 400
EVALUATION = "eval_"
MINUTES = "minutes"
# What the charts show together, in their order. What no chart here names gets one of its own.
GROUPS: dict[str, tuple[str, ...]] = {
    "base_loss": ("base_loss",),
    "alignment_loss": ("crepa_loss", "urepa_loss", "layersync_loss"),
    "similarity": ("crepa_similarity", "urepa_similarity", "layersync_similarity"),
    "coefficient": ("crepa_weight", "urepa_weight"),
    "learning_rate": ("learning_rate",),
    "step_time": ("step_seconds",),
    "manifold_loss": ("urepa_manifold_loss",),
    "gradient": ("grad_norm", "projector_grad_norm"),
}
# Sums, states and parts of what is shown already.
NOT_SHOWN = frozenset(
    {"step", "loss", "epoch", MINUTES}
    | {f"{prefix}_{name}" for prefix in ("crepa", "urepa") for name in ("cutoff", "alignment_score", "alignment_loss")}
)
# What never changes smoothly: smoothing it would lie.
EXACT = frozenset({"coefficient", "learning_rate"})

# Told apart by colour-blind people (after Okabe and Ito), and readable on white and on dark grey.
_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#B0558B", "#7A6A00", "#3A8FC8")
_DARK = ("#56B4E9", "#FF9A4D", "#2BC79A", "#E39AC6", "#F0E442", "#9AD1F5")
# Readable on both: for a page that follows the browser's own setting, which the server doesn't know.
_EITHER = ("#2E8FCB", "#E0701A", "#14A37C", "#C46FA0", "#A08C10", "#6FA8D0")
_DASHES = ("solid", "dashed", "dotted")


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name in the legend, its points `[x, y]`, its `colour` (0, 1, ...) and `dash` (0, 1, 2).

    `faint` is the noise behind a smoothed line: it has no place in legend and tooltip.
    """

    name: str
    points: Points
    colour: int = 0
    dash: int = 0
    faint: bool = False


def titles(_: Words) -> dict[str, str]:
    """What the charts are called, with the unit where there is one."""
    return {
        "base_loss": _("Base loss"),
        "alignment_loss": _("Alignment loss"),
        "similarity": _("Similarity"),
        "coefficient": _("Coefficient"),
        "learning_rate": _("Learning rate"),
        "step_time": _("Step time (seconds)"),
        "manifold_loss": _("Manifold loss"),
        "gradient": _("Gradient norm"),
    }


def metric_name(metric: str, _: Words) -> str:
    """What tells one metric of a chart from the others."""
    names = {"crepa": "CREPA", "urepa": "U-REPA", "layersync": "LayerSync"}
    known = {"grad_norm": _("Model"), "projector_grad_norm": _("Projector")}
    return known.get(metric) or names.get(metric.partition("_")[0], metric)


def is_evaluation(row: Row) -> bool:
    """Whether a row holds the measures of an evaluation, and nothing of a step."""
    return any(name.startswith(EVALUATION) for name in row)


def shown_groups(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """The charts that rows give something to show: for each, the metrics that are there."""
    there = {name: None for row in rows if not is_evaluation(row) for name, value in row.items() if _is_number(value)}
    grouped = {group: tuple(name for name in names if name in there) for group, names in GROUPS.items()}
    known = {name for names in GROUPS.values() for name in names} | NOT_SHOWN
    others = {name: (name,) for name in there if name not in known}
    return {group: names for group, names in (grouped | others).items() if names}


def decimated(rows: Sequence[Row], most: int = MOST_POINTS) -> list[Row]:
    """At most `most` rows spread evenly, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def with_minutes(rows: Iterable[Row]) -> list[Row]:
    """The rows with the `minutes` trained until each; pauses between the starts of a run don't count."""
    total, timed = 0.0, []
    for row in rows:
        seconds = row.get("step_seconds")
        total += seconds if _is_finite(seconds) else 0.0
        timed.append(row | {MINUTES: total / 60})
    return timed


def points(rows: Iterable[Row], metric: str, across: str = "step") -> Points:
    """The points `[x, y]` of a metric, in order; y is None where it isn't finite. Rows without it are passed over.

    A file's NaN is None already when it has been read.
    """
    return [
        [_plain(row[across]), _plain(row[metric])]
        for row in rows
        if metric in row and _is_finite(row.get(across)) and (row[metric] is None or _is_number(row[metric]))
    ]


def smoothed(line: Points, weight: float) -> Points:
    """An exponential moving average that begins without a bias to 0. `weight` in [0, 1): 0 leaves the line as it is."""
    if weight <= 0:
        return line
    average, share, result = 0.0, 0.0, []
    for x, y in line:
        if y is not None:
            average = weight * average + (1 - weight) * y
            share = weight * share + (1 - weight)
            y = _plain(average / share)
        result.append([x, y])
    return result


def run_lines(rows: Sequence[Row], group: str, metrics: Sequence[str], smoothing: float, _: Words) -> list[Line]:
    """The lines of one run in one chart: a colour a metric, and behind what is smoothed what was measured."""
    lines = []
    for place, metric in enumerate(metrics):
        raw = points(rows, metric)
        name = metric_name(metric, _) if len(metrics) > 1 else titles(_).get(group, metric)
        if smoothing > 0 and group not in EXACT:
            lines.append(Line(name, raw, place, faint=True))
            raw = smoothed(raw, smoothing)
        lines.append(Line(name, raw, place, dash=min(place, 1)))
    return lines


def chart_options(
    lines: Sequence[Line], *, x_name: str, y_name: str, dark: bool | None, language: str, legend: bool | None = None
) -> dict[str, Any]:
    """The options of a line chart with named axes and a tooltip, all of it plain JSON.

    Args:
        dark: colours for a dark page (True), for a light one (False), or for either (None).
        language: how numbers are written on axes and in tooltips.
        legend: whether there is one; None: where there are several lines to tell apart.
    """
    palette = {True: _DARK, False: _LIGHT, None: _EITHER}[dark]
    ink = {True: "#d0d0d0", False: "#424242", None: "#808080"}[dark]
    grid_ink = {True: "#3a3a3a", False: "#e4e4e4", None: "rgba(128,128,128,0.25)"}[dark]
    named = list(dict.fromkeys(line.name for line in lines if not line.faint))
    has_legend = len(named) > 1 if legend is None else legend
    told = y_name if named == [y_name] else f"{y_name}: {', '.join(named)}"
    # Evaluated in the browser. The language is one of ours, and JSON is valid JavaScript.
    written = f"toLocaleString({json.dumps(language)}, {{maximumSignificantDigits: 4}})"
    figures = f"(value) => value == null ? '–' : Number(value).{written}"
    axis_label = {"color": ink, "hideOverlap": True, ":formatter": figures}
    axis = {
        "type": "value",
        "nameTextStyle": {"color": ink},
        "axisLabel": axis_label,
        "axisLine": {"lineStyle": {"color": ink}},
        "splitLine": {"lineStyle": {"color": grid_ink}},
    }
    return {
        "animation": False,
        "color": list(palette),
        "textStyle": {"color": ink, "fontFamily": "system-ui, sans-serif"},
        "aria": {"enabled": True, "label": {"enabled": True, "description": told}},
        "grid": {"left": 8, "right": 16, "top": 56 if has_legend else 34, "bottom": 26, "containLabel": True},
        "legend": {"show": has_legend, "type": "scroll", "top": 0, "data": named, "textStyle": {"color": ink}},
        "tooltip": {"trigger": "axis", "confine": True, ":valueFormatter": figures},
        "xAxis": axis
        | {"name": x_name, "nameLocation": "middle", "nameGap": 26, "min": "dataMin", "max": "dataMax"}
        | {"axisLabel": axis_label | {"alignMaxLabel": "right"}},  # else the last is cut at the edge
        "yAxis": axis | {"name": y_name, "scale": True, "nameTextStyle": {"color": ink, "align": "left"}},
        "series": [_series(line, palette) for line in lines],
    }


def _series(line: Line, palette: Sequence[str]) -> dict[str, Any]:
    """A line of ECharts. Beyond the palette colours begin anew, with the next kind of dash."""
    turns, colour = divmod(line.colour, len(palette))
    dash = _DASHES[min(turns + line.dash, len(_DASHES) - 1)]
    style = {"color": palette[colour], "width": 1 if line.faint else 2, "type": "solid" if line.faint else dash}
    series: dict[str, Any] = {
        "type": "line",
        "name": line.name,
        "data": line.points,
        "symbol": "circle",
        "showSymbol": len(line.points) == 1,
        "connectNulls": False,
        "lineStyle": style | ({"opacity": 0.25} if line.faint else {}),
        "itemStyle": {"color": palette[colour]},
        "z": 2 if line.faint else 3,
    }
    if line.faint:
        series |= {"silent": True, "tooltip": {"show": False}, "emphasis": {"disabled": True}}
    return series


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: float | None) -> float | None:
    """To six digits: more than a screen shows, and half of what would travel. None for NaN and infinity."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
