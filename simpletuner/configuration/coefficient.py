"""The coefficient of an alignment loss as its options plan it, before anything is learnt from the run.

Free of torch: the trainer follows it, and the WebUI draws it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from simpletuner.configuration.alignment_shared import AlignmentOptions

ScheduleName = Literal["constant", "linear", "cosine", "polynomial"]

# Of the plateau rule. RARE's EMAs of the residual (fast 0.999, slow 0.99995) span 1/400 and 1/20 of its 400K-step
# budget; here they are scaled to the run. After the decision the coefficient ramps to 0 over an eighth of the run.
FAST_SPAN, SLOW_SPAN, RAMP_SPAN = 1 / 400, 1 / 20, 1 / 8


@dataclass(frozen=True)
class CoefficientSchedule:
    """Warm-up and decay of the coefficient: a pure function of the step.

    Linear from 0 over `warmup_steps`; then constant, or from `base` to `end` over the `decay_steps` that follow the
    warm-up (0: the rest of the run). Warm-up 100 and decay 5000 end at step 5100.
    """

    kind: ScheduleName = "constant"
    base: float = 0.5
    end: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    power: float = 1.0
    total_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind != "constant" and self.decay_steps == 0 and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"A {self.kind} coefficient with decay_steps 0 decays over the rest of the run, but max_train_steps is "
                f"{self.total_steps} and warmup_steps {self.warmup_steps}: give decay_steps, or train longer."
            )

    @property
    def last_decay_step(self) -> int | None:
        """The step from which the coefficient stays at `end`; None for a constant one."""
        if self.kind == "constant":
            return None
        return self.warmup_steps + self.decay_steps if self.decay_steps > 0 else self.total_steps

    def __call__(self, step: int) -> float:
        """The coefficient at the 0-based `step`."""
        if step < self.warmup_steps:
            return self.base * step / self.warmup_steps
        last = self.last_decay_step
        if last is None:
            return self.base
        progress = min((step - self.warmup_steps) / (last - self.warmup_steps), 1.0)
        if self.kind == "linear":
            remaining = 1 - progress
        elif self.kind == "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
        else:
            remaining = (1 - progress) ** self.power
        return self.end + (self.base - self.end) * remaining

    def is_zero_from(self, step: int) -> bool:
        """Whether the coefficient is 0 at `step` and at every later one."""
        last = self.last_decay_step
        if last is None:
            return self.base == 0
        return (self.base == 0 or step >= last) and self.end == 0


def planned_schedule(options: AlignmentOptions, total_steps: int) -> CoefficientSchedule:
    """Warm-up and decay as the options say, for a run of `total_steps` optimizer steps.

    Raises:
        ValueError: the decay lasts for the rest of the run, and there is none.
    """
    return CoefficientSchedule(
        kind=options.scheduler,
        base=options.lambda_,
        end=options.lambda_end,
        warmup_steps=options.warmup_steps,
        decay_steps=options.decay_steps,
        power=options.power,
        total_steps=total_steps,
    )


def planned_coefficient(options: AlignmentOptions, total_steps: int, step: int) -> float:
    """The coefficient at the 0-based `step` by schedule and `cutoff_step`; other cutoffs depend on the run."""
    if 0 < options.cutoff_step <= step:
        return 0.0
    return planned_schedule(options, total_steps)(step)
