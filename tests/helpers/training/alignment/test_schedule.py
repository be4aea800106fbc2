from __future__ import annotations

import math

import pytest
import torch

from simpletuner.helpers.training.alignment.schedule import (
    AlignmentScheduler,
    CoefficientSchedule,
    Plateau,
    SimilarityMeter,
)


def scheduler(**changes: object) -> AlignmentScheduler:
    return AlignmentScheduler(CoefficientSchedule(base=0.5), **changes)  # type: ignore[arg-type]


def test_cutoff_by_step() -> None:
    by_step = scheduler(cutoff_step=3)
    assert [by_step.coefficient(step) for step in range(5)] == [0.5, 0.5, 0.5, 0, 0]
    assert not by_step.finished(2) and by_step.finished(3)
    assert scheduler(cutoff_step=0).coefficient(10**6) == 0.5


def test_a_permanent_threshold_never_comes_back() -> None:
    permanent = scheduler(threshold=0.6, ema_decay=0.0)
    permanent.observe(0, 0.7)
    assert permanent.coefficient(1) == 0 and permanent.finished(1)
    permanent.observe(1, 0.1)
    assert permanent.coefficient(2) == 0 and permanent.finished(2)


def test_a_recoverable_threshold_comes_back() -> None:
    recoverable = scheduler(threshold=0.6, ema_decay=0.0, mode="recoverable")
    recoverable.observe(0, 0.7)
    assert recoverable.coefficient(1) == 0 and recoverable.is_cut_off(1) and not recoverable.finished(1)
    recoverable.observe(1, 0.5)
    assert recoverable.coefficient(2) == 0.5


def test_the_threshold_is_on_the_moving_average() -> None:
    slow = scheduler(threshold=0.6, ema_decay=0.5)
    slow.observe(0, 0.0)
    slow.observe(1, 1.0)
    assert slow.similarity_ema == 0.5 and not slow.cut_off
    slow.observe(2, 1.0)
    assert slow.cut_off


def similarity_curve(step: int, total: int) -> float:
    return 0.6 * (1 - math.exp(-10 * step / total))


def test_plateau_stops_after_the_similarity_has_saturated_and_ramps_to_zero() -> None:
    total = 800
    plateau = scheduler(plateau=Plateau(total, tolerance=0.02, warmup=0.125))
    for step in range(total):
        plateau.observe(step, similarity_curve(step, total))
    assert plateau.ramp_from is not None
    # Saturated to within 2 % somewhere in the second quarter of the run, not at its start and not at its end.
    assert 0.25 * total < plateau.ramp_from < 0.6 * total
    start, length = plateau.ramp_from, total // 8
    assert plateau.coefficient(start) == 0.5
    assert plateau.coefficient(start + length // 2) == pytest.approx(0.25)
    assert not plateau.finished(start + length - 1)
    assert plateau.coefficient(start + length) == 0 and plateau.finished(start + length)


def test_plateau_does_not_stop_while_the_similarity_rises() -> None:
    rising = scheduler(plateau=Plateau(400, tolerance=0.02, warmup=0.125))
    for step in range(400):
        rising.observe(step, step / 400)
    assert rising.ramp_from is None
    with pytest.raises(ValueError, match="max_train_steps"):
        Plateau(0)


def test_state_makes_a_resumed_schedule_go_on_alike() -> None:
    """Mistake 12: a permanent cutoff, the averages and the ramp come back at resume."""

    def fresh() -> AlignmentScheduler:
        return scheduler(threshold=0.55, ema_decay=0.9, plateau=Plateau(100, tolerance=0.1, warmup=0.1))

    whole, first, second = fresh(), fresh(), fresh()
    for step in range(60):
        whole.observe(step, similarity_curve(step, 100))
        (first if step < 25 else second).observe(step, similarity_curve(step, 100))
        if step == 24:
            second.load_state_dict(first.state_dict())
    assert second.state_dict() == whole.state_dict()
    assert [second.coefficient(s) for s in range(60, 90)] == [whole.coefficient(s) for s in range(60, 90)]


def test_the_meter_averages_micro_steps_and_is_read_one_step_late() -> None:
    meter = SimilarityMeter()
    meter.add(torch.tensor(0.2))
    meter.add(torch.tensor(0.4))
    assert meter.close(0) is None
    meter.add(torch.tensor(0.5))
    step, value = meter.close(1) or (None, math.nan)
    assert step == 0 and value == pytest.approx(0.3)


def test_the_meter_comes_back_in_the_middle_of_a_step() -> None:
    meter, resumed = SimilarityMeter(), SimilarityMeter()
    meter.add(torch.tensor(0.1))
    meter.close(0)
    meter.add(torch.tensor(0.3))
    resumed.load_state_dict(meter.state_dict())
    for each in (meter, resumed):
        each.add(torch.tensor(0.7))
    assert resumed.close(1) == meter.close(1)
    assert resumed.close(2) == meter.close(2)


def test_averages_keep_their_span_where_only_some_steps_are_measured() -> None:
    every, some = (
        AlignmentScheduler(CoefficientSchedule(), plateau=Plateau(1000), ema_decay=0.9, threshold=1.0) for _ in "ab"
    )
    for step in range(40):
        every.observe(step, 0.1 if step == 0 else 0.5)
    for step in (0, 1, 9, 19, 39):
        some.observe(step, 0.1 if step == 0 else 0.5)
    assert some.similarity_ema == pytest.approx(every.similarity_ema)
    assert every.plateau is not None and some.plateau is not None
    assert (some.plateau.fast, some.plateau.slow) == (
        pytest.approx(every.plateau.fast),
        pytest.approx(every.plateau.slow),
    )
