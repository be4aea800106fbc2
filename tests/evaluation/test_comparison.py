"""The headline figure, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.evaluation.comparison import mean_and_spread, step_reaching


def test_interpolates_between_measurements() -> None:
    assert step_reaching([100, 200, 300], [9.0, 5.0, 1.0], 4.0) == pytest.approx(225)
    assert step_reaching([100, 200, 300], [9.0, 5.0, 1.0], 5.0) == pytest.approx(200)


def test_a_dip_that_does_not_last_is_not_counted() -> None:
    assert step_reaching([100, 200, 300, 400], [9.0, 3.0, 5.0, 3.0], 4.0) == pytest.approx(350)


def test_ends_of_the_run() -> None:
    assert step_reaching([100, 200], [3.0, 2.0], 4.0) == 100
    assert step_reaching([100, 200], [9.0, 5.0], 4.0) == math.inf


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_a_run_reaches_its_own_end_at_or_before_its_end(values: list[float]) -> None:
    steps = list(range(1, len(values) + 1))
    assert 1 <= step_reaching(steps, values, values[-1]) <= len(values)


def test_refuses_what_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="at least one"):
        step_reaching([], [], 1.0)
    with pytest.raises(ValueError, match="ascend"):
        step_reaching([2, 1], [1.0, 1.0], 1.0)
    with pytest.raises(ValueError, match="finite"):
        step_reaching([1, 2], [1.0, math.nan], 1.0)


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, spread = mean_and_spread([4.0])
    assert mean == 4.0 and math.isnan(spread)
    with pytest.raises(ValueError, match="no values"):
        mean_and_spread([])
