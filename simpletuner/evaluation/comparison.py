"""Reading a comparison of training runs: when an arm reaches what another ends with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def step_reaching(steps: Sequence[float], values: Sequence[float], level: float) -> float:
    """The step from which a falling measure stays at or below `level`, by linear interpolation between measurements.

    A dip below the level that does not last is not counted, so noise can only make an arm look slower.

    Args:
        steps: ascending steps of the measurements.
        values: the measure at each; lower is better.
        level: e.g. the final value of the baseline.

    Returns:
        A step between the first and the last measurement: the first where all values are below, `inf` where the last
        is above.

    Raises:
        ValueError: nothing measured, unequal lengths, steps not ascending or a value that is not finite.
    """
    if not steps or len(steps) != len(values):
        raise ValueError(f"{len(steps)} steps and {len(values)} values; at least one is needed and one value a step")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"steps must ascend, got {list(steps)}")
    if not all(math.isfinite(value) for value in (*values, level)):
        raise ValueError(f"values must be finite, got {list(values)} and level {level}")
    if values[-1] > level:
        return math.inf
    above = [index for index, value in enumerate(values) if value > level]
    if not above:
        return float(steps[0])
    last = above[-1]
    share = (values[last] - level) / (values[last] - values[last + 1])
    return steps[last] + share * (steps[last + 1] - steps[last])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of one seed is NaN.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there are no values to average")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
