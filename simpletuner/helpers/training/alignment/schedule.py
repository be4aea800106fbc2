"""The coefficient of an alignment loss over a run: warm-up, decay, and the cutoffs that end it.

The similarity of each step is averaged over micro-steps and ranks, and read back one step late, so that every rank
decides the same at the same step and the device never waits for the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from simpletuner.configuration.coefficient import FAST_SPAN, RAMP_SPAN, SLOW_SPAN, CoefficientSchedule
from simpletuner.helpers.utils.host_copy import HostCopy


@dataclass
class Plateau:
    """RARE's stopping rule: the fast EMA of the residual `1 - similarity` has caught up with the slow one.

    Args:
        total_steps: length of the run, which scales both EMAs and the ramp.
        tolerance: stop when `(slow - fast) / slow` falls below it.
        warmup: share of the run in which it never stops.
    """

    total_steps: int
    tolerance: float = 0.02
    warmup: float = 0.125
    fast: float | None = None
    slow: float | None = None

    def __post_init__(self) -> None:
        if self.total_steps <= 0:
            raise ValueError("plateau_stop scales with the run: max_train_steps must be above 0.")

    def reached(self, step: int, similarity: float, steps: int = 1) -> bool:
        """Takes in a similarity that stands for `steps` steps up to this one; whether the rule holds after it."""
        residual = 1 - similarity
        self.fast = _ema(self.fast, residual, _decay(self.total_steps * FAST_SPAN) ** steps)
        self.slow = _ema(self.slow, residual, _decay(self.total_steps * SLOW_SPAN) ** steps)
        if step < self.warmup * self.total_steps:
            return False
        return self.slow - self.fast < self.tolerance * self.slow

    def ramp(self, steps_since: int) -> float:
        """The factor, 1 to 0 along a half cosine, `steps_since` steps after the rule first held."""
        progress = steps_since / max(self.total_steps * RAMP_SPAN, 1.0)
        return (1 + math.cos(math.pi * progress)) / 2 if progress < 1 else 0.0


def _ema(average: float | None, value: float, decay: float) -> float:
    return value if average is None else decay * average + (1 - decay) * value


def _decay(span: float) -> float:
    return 1 - 1 / max(span, 1.0)


@dataclass
class AlignmentScheduler:
    """The coefficient with its cutoffs: by step, by similarity and by plateau.

    Args:
        cutoff_step: the coefficient is 0 from this step on; 0 never.
        threshold: cut off when the EMA of the normalised similarity, in [-1, 1], reaches it; None never.
        mode: "permanent" ends the alignment for good; "recoverable" resumes it once the EMA is below the threshold.
        plateau: the plateau rule; None never.
    """

    schedule: CoefficientSchedule
    cutoff_step: int = 0
    threshold: float | None = None
    ema_decay: float = 0.99
    mode: Literal["permanent", "recoverable"] = "permanent"
    plateau: Plateau | None = None
    similarity_ema: float | None = None
    cut_off: bool = False
    ramp_from: int | None = None
    last_observed: int | None = None

    def coefficient(self, step: int) -> float:
        """What the loss is multiplied by at the 0-based `step`."""
        if self.cut_off or 0 < self.cutoff_step <= step:
            return 0.0
        return self.schedule(step) * self._ramp(step)

    def is_cut_off(self, step: int) -> bool:
        """Whether a cutoff, not the schedule, makes the coefficient 0 at `step`."""
        return self.cut_off or 0 < self.cutoff_step <= step or self._ramp(step) == 0

    def finished(self, step: int) -> bool:
        """Whether the coefficient is 0 at `step` and at every later one: nothing need be computed any more."""
        for_good = self.cut_off and self.mode == "permanent"
        return for_good or 0 < self.cutoff_step <= step or self._ramp(step) == 0 or self.schedule.is_zero_from(step)

    def observe(self, step: int, similarity: float) -> None:
        """Takes in the similarity measured at `step`, and switches on or off what follows from it.

        It stands for the steps since the last one that was measured, so that averages keep their span.
        """
        steps = 1 if self.last_observed is None else max(step - self.last_observed, 1)
        self.last_observed = step
        self.similarity_ema = _ema(self.similarity_ema, similarity, self.ema_decay**steps)
        if self.threshold is not None:
            reached = self.similarity_ema >= self.threshold
            self.cut_off = reached or (self.cut_off and self.mode == "permanent")
        if self.plateau is not None and self.ramp_from is None and self.plateau.reached(step, similarity, steps):
            self.ramp_from = step

    def _ramp(self, step: int) -> float:
        if self.plateau is None or self.ramp_from is None:
            return 1.0
        return self.plateau.ramp(step - self.ramp_from)

    def state_dict(self) -> dict[str, Any]:
        """What was learnt from the run so far; plain numbers."""
        names = ("similarity_ema", "cut_off", "ramp_from", "last_observed")
        state: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.plateau is not None:
            state |= {"fast": self.plateau.fast, "slow": self.plateau.slow}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s numbers; the options stay as configured."""
        self.similarity_ema = state["similarity_ema"]
        self.cut_off = state["cut_off"]
        self.ramp_from = state["ramp_from"]
        self.last_observed = state.get("last_observed")
        if self.plateau is not None:
            self.plateau.fast, self.plateau.slow = state.get("fast"), state.get("slow")


class SimilarityMeter:
    """The similarity of a step, averaged over micro-steps and ranks, and read on the host one step late."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._closed: tuple[int, HostCopy] | None = None

    def add(self, similarity: Tensor) -> None:
        """Adds one micro-step's scalar; the ranks' mean is taken at once, so that all hold the same."""
        value = similarity.detach().float().clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(value)
            value /= torch.distributed.get_world_size()
        self._sum = value if self._sum is None else self._sum + value
        self._count += 1

    def close(self, step: int) -> tuple[int, float] | None:
        """Ends `step` and starts its copy to the host; returns the step closed before it and its mean."""
        ready = self._read()
        self._closed = None if self._sum is None else (step, HostCopy(self._sum / self._count))
        self._sum, self._count = None, 0
        return ready

    def _read(self) -> tuple[int, float] | None:
        return None if self._closed is None else (self._closed[0], self._closed[1].read()[0])

    def state_dict(self) -> dict[str, Any]:
        return {
            "sum": None if self._sum is None else float(self._sum),
            "count": self._count,
            "closed": self._read(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum = None if state["sum"] is None else torch.tensor(state["sum"])
        self._count = state["count"]
        closed = state["closed"]
        self._closed = None if closed is None else (closed[0], HostCopy(torch.tensor(closed[1])))
