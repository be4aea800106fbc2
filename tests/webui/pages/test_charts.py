"""Charts as plain data: which there are, their lines, and options that are valid JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.webui.pages.charts import (
    Line,
    Row,
    chart_options,
    decimated,
    is_evaluation,
    points,
    run_lines,
    shown_groups,
    smoothed,
    titles,
    with_minutes,
)


def words(text: str) -> str:
    return f"[{text}]"


ROWS: list[Row] = [
    {
        "step": step,
        "loss": 1.0,
        "base_loss": 1 / step,
        "crepa_loss": -0.1 * step,
        "crepa_similarity": 0.1,
        "crepa_weight": 0.5,
        "crepa_cutoff": 0.0,
        "crepa_alignment_score": 0.3,
        "layersync_loss": -0.2,
        "learning_rate": 1e-4,
        "step_seconds": 30.0,
        "grad_norm": 1.0,
    }
    for step in (1, 2, 3, 4)
]


def options(lines: list[Line], **settings: Any) -> dict[str, Any]:
    return chart_options(lines, **({"x_name": "Step", "y_name": "Loss", "dark": False, "language": "en"} | settings))


def test_charts_are_those_that_the_rows_have_something_for() -> None:
    groups = shown_groups([*ROWS, {"step": 4, "eval_fid": 3.0}, {"step": 5, "my_metric": 1.0}])
    assert groups == {
        "base_loss": ("base_loss",),
        "alignment_loss": ("crepa_loss", "layersync_loss"),
        "similarity": ("crepa_similarity",),
        "coefficient": ("crepa_weight",),
        "learning_rate": ("learning_rate",),
        "step_time": ("step_seconds",),
        "gradient": ("grad_norm",),
        "my_metric": ("my_metric",),
    }
    assert shown_groups([]) == {}
    assert is_evaluation({"step": 4, "eval_fid": 3.0})
    assert not is_evaluation(ROWS[0])


def test_points_are_null_where_a_value_is_not_finite_and_absent_where_a_row_has_none() -> None:
    rows: list[Row] = [
        {"step": 1, "base_loss": 0.123456789},
        {"step": 2, "base_loss": math.nan},
        {"step": 2, "eval_fid": 1.0},
        {"step": 3, "base_loss": -math.inf},
        {"step": 4, "base_loss": None},  # a NaN that was read from a file
        {"step": 5, "base_loss": 1},
    ]
    assert points(rows, "base_loss") == [[1, 0.123457], [2, None], [3, None], [4, None], [5, 1]]


def test_minutes_are_what_was_trained_until_then() -> None:
    timed = with_minutes([*ROWS[:2], {"step": 2, "eval_fid": 1.0}, {"step": 3, "base_loss": 2.0, "step_seconds": 15.0}])
    assert [row["minutes"] for row in timed] == [0.5, 1.0, 1.0, 1.25]
    assert points(timed, "base_loss", "minutes")[-1] == [1.25, 2.0]


@given(count=st.integers(0, 900), most=st.integers(2, 400))
def test_decimated_rows_keep_first_and_last_and_order(count: int, most: int) -> None:
    kept = decimated([{"step": step} for step in range(count)], most)
    steps = [row["step"] for row in kept]
    assert len(kept) == min(count, most)
    assert steps == sorted(set(steps))
    assert steps[:1] == ([0] if count else [])
    assert steps[-1:] == ([count - 1] if count else [])


@given(value=st.floats(-100, 100), weight=st.floats(0, 0.98), count=st.integers(1, 20))
def test_smoothing_leaves_a_constant_line_as_it_is(value: float, weight: float, count: int) -> None:
    """A moving average that began at 0 would rise from there."""
    line: Any = [[step, value] for step in range(count)]
    assert [y for _, y in smoothed(line, weight)] == pytest.approx([value] * count, rel=1e-4, abs=1e-9)


def test_smoothing_calms_a_line_and_keeps_its_gaps() -> None:
    line: Any = [[1, 0.0], [2, 1.0], [3, None], [4, 0.0]]
    calm = smoothed(line, 0.5)
    assert calm == [[1, 0.0], [2, pytest.approx(2 / 3, rel=1e-5)], [3, None], [4, pytest.approx(2 / 7, rel=1e-5)]]
    assert smoothed(line, 0) == line


def test_lines_of_a_run_have_what_was_measured_behind_them_only_where_smoothed() -> None:
    lines = run_lines(ROWS, "alignment_loss", ("crepa_loss", "layersync_loss"), 0.6, words)
    assert [(line.name, line.faint, line.colour, line.dash) for line in lines] == [
        ("CREPA", True, 0, 0),
        ("CREPA", False, 0, 0),
        ("LayerSync", True, 1, 0),
        ("LayerSync", False, 1, 1),
    ]
    assert [line.name for line in run_lines(ROWS, "base_loss", ("base_loss",), 0, words)] == ["[Base loss]"]
    # A schedule is shown as it was: no smoothing hides where it ends.
    coefficient = run_lines(ROWS, "coefficient", ("crepa_weight",), 0.9, words)
    assert [line.points for line in coefficient] == [[[1, 0.5], [2, 0.5], [3, 0.5], [4, 0.5]]]


@pytest.mark.parametrize("dark", [True, False, None])
def test_options_name_axes_and_series_and_are_json(dark: bool | None) -> None:
    found = options([Line("A", [[1, None], [2, 0.5]]), Line("B", [[1, 1.0]], 1, 1)], dark=dark, language="es")
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert (found["xAxis"]["name"], found["yAxis"]["name"]) == ("Step", "Loss")
    assert [series["name"] for series in found["series"]] == ["A", "B"]
    assert found["series"][0]["data"] == [[1, None], [2, 0.5]]
    assert found["series"][1]["lineStyle"]["type"] == "dashed"
    assert found["series"][1]["showSymbol"], "a line of one point would not be seen"
    assert found["legend"]["show"]
    assert found["legend"]["data"] == ["A", "B"]
    assert found["tooltip"]["trigger"] == "axis"
    assert 'toLocaleString("es"' in found["tooltip"][":valueFormatter"]
    assert found["aria"]["label"]["description"] == "Loss: A, B"


def test_a_single_line_needs_no_legend_and_a_faint_one_is_not_in_it() -> None:
    found = options([Line("A", [[1, 1.0]], faint=True), Line("A", [[1, 1.0]])])
    assert not found["legend"]["show"]
    faint, plain = found["series"]
    assert faint["tooltip"] == {"show": False}
    assert faint["lineStyle"]["opacity"] < 1
    assert "opacity" not in plain["lineStyle"]
    assert options([Line("A", [[1, 1.0]])], legend=True)["legend"]["show"]
    assert options([Line("Loss", [[1, 1.0]])])["aria"]["label"]["description"] == "Loss", "nobody wants it twice"


def test_the_last_step_below_a_chart_is_not_cut_at_its_edge() -> None:
    axis = options([Line("A", [[1, 1.0], [50_000, 0.5]])])["xAxis"]
    assert axis["axisLabel"]["alignMaxLabel"] == "right" and ":formatter" in axis["axisLabel"]


def test_dark_and_light_differ_and_every_line_differs_from_every_other() -> None:
    lines = [Line(str(number), [[1, 1.0]], number) for number in range(12)]
    looks = {}
    for dark in (True, False, None):
        styles = [series["lineStyle"] for series in options(lines, dark=dark)["series"]]
        looks[dark] = [(style["color"], style["type"]) for style in styles]
    assert all(len(set(look)) == len(lines) for look in looks.values())
    assert looks[True] != looks[False]


@pytest.mark.parametrize(
    ("dark", "ground"), [(False, "#ffffff"), (True, "#121212"), (None, "#ffffff"), (None, "#121212")]
)
def test_lines_and_texts_stand_out_from_the_page(dark: bool | None, ground: str) -> None:
    """WCAG asks for a contrast of 3 for what is drawn."""
    found = options([Line(str(number), [[1, 1.0]], number) for number in range(6)], dark=dark)
    colours = [*found["color"], found["xAxis"]["axisLabel"]["color"]]
    needed = 3.0 if dark is not None else 2.2  # on both grounds at once
    assert {colour: round(contrast(colour, ground), 2) for colour in colours if contrast(colour, ground) < needed} == {}


def contrast(colour: str, ground: str) -> float:
    bright, dim = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_group_has_a_title() -> None:
    assert set(shown_groups([dict.fromkeys(ROWS[0], 1.0)])) <= set(titles(words))
