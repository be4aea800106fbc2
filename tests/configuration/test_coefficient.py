from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.configuration import CrepaOptions
from simpletuner.configuration.coefficient import CoefficientSchedule, ScheduleName, planned_coefficient

KINDS: tuple[ScheduleName, ...] = ("linear", "cosine", "polynomial")


@pytest.mark.parametrize("kind", KINDS)
def test_decay_is_counted_from_the_end_of_the_warm_up(kind: ScheduleName) -> None:
    """Mistake 9: warm-up 100 + decay 5000 ends at step 5100, not at 5000."""
    schedule = CoefficientSchedule(kind, base=0.5, end=0.1, warmup_steps=100, decay_steps=5000, power=2.0)
    assert schedule(0) == 0
    assert schedule(50) == pytest.approx(0.25)
    assert schedule(100) == 0.5
    assert schedule(5000) > 0.1
    assert schedule(5099) > 0.1
    assert schedule(5100) == pytest.approx(0.1)
    assert schedule(9000) == pytest.approx(0.1)


def test_the_shapes_of_the_decays() -> None:
    def halfway(kind: ScheduleName, power: float = 1.0) -> float:
        return CoefficientSchedule(kind, base=1.0, end=0.0, decay_steps=100, power=power)(50)

    assert halfway("linear") == pytest.approx(0.5)
    assert halfway("cosine") == pytest.approx(0.5)
    assert halfway("polynomial", 2.0) == pytest.approx(0.25)
    quarter = CoefficientSchedule("cosine", base=1.0, decay_steps=100)(25)
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_decay_steps_zero_is_the_rest_of_the_run() -> None:
    schedule = CoefficientSchedule("linear", base=1.0, warmup_steps=10, total_steps=110)
    assert schedule(60) == pytest.approx(0.5)
    assert schedule(110) == 0
    with pytest.raises(ValueError, match="max_train_steps"):
        CoefficientSchedule("linear", base=1.0, warmup_steps=10, total_steps=10)


def test_constant() -> None:
    schedule = CoefficientSchedule("constant", base=0.3)
    assert schedule(0) == schedule(10**6) == 0.3


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.floats(0, 2), st.floats(0, 2), st.integers(0, 50), st.integers(1, 50))
def test_the_coefficient_stays_between_its_ends(
    kind: ScheduleName, base: float, end: float, warmup: int, decay: int
) -> None:
    schedule = CoefficientSchedule(kind, base=base, end=end, warmup_steps=warmup, decay_steps=decay)
    values = [schedule(step) for step in range(warmup + decay + 5)]
    assert all(0 <= value <= max(base, end) + 1e-9 for value in values)
    for step, _ in enumerate(values):
        if schedule.is_zero_from(step):
            assert all(value == 0 for value in values[step:])


def test_the_plan_ends_at_the_cutoff_step() -> None:
    options = CrepaOptions(enabled=True, lambda_=0.5, scheduler="linear", warmup_steps=10, cutoff_step=60)
    assert planned_coefficient(options, 110, 5) == pytest.approx(0.25)
    assert planned_coefficient(options, 110, 59) == pytest.approx(0.5 * 51 / 100)
    assert planned_coefficient(options, 110, 60) == 0
    assert planned_coefficient(CrepaOptions(lambda_=0.5), 0, 10**6) == 0.5


def test_a_decay_over_the_rest_of_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="decay_steps 0 decays over the rest"):
        planned_coefficient(CrepaOptions(scheduler="linear", warmup_steps=10), 10, 0)
