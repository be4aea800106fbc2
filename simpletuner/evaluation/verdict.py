"""What a comparison of two runs says, in words: no more than its numbers do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["better", "worse", "equal"]
CERTAINTY = 2.0  # standard errors that a difference must reach to count


@dataclass(frozen=True)
class Difference:
    """One measure of two runs.

    Attributes:
        measure: its name.
        baseline, aligned: its values.
        higher_is_better: how to read it.
        error: standard error of the difference; None where it isn't known.
    """

    measure: str
    baseline: float
    aligned: float
    higher_is_better: bool = True
    error: float | None = None

    @property
    def outcome(self) -> Outcome:
        """The aligned run against the baseline; "equal" within `CERTAINTY` standard errors, if they are known."""
        gain = self.aligned - self.baseline if self.higher_is_better else self.baseline - self.aligned
        if abs(gain) <= CERTAINTY * (0.0 if self.error is None else self.error):
            return "equal"
        return "better" if gain > 0 else "worse"

    def __str__(self) -> str:
        change = f"{self.aligned - self.baseline:+.3g}"
        if self.error is not None:
            change += f" ± {self.error:.1g}"
        return f"{self.measure} {self.baseline:.3g} → {self.aligned:.3g} ({change})"


def verdict(
    aligned: str, baseline: str, block: str, features: Sequence[Difference], samples: Sequence[Difference]
) -> str:
    """Whether alignment helped, by which measures and by how much: a paragraph.

    Args:
        aligned, baseline: names of the runs.
        block: whose hidden states were compared with the teacher.
        features: similarities of these hidden states to the teacher.
        samples: measures of the runs' samples; none where there was no evaluation.

    Raises:
        ValueError: `features` is empty.
    """
    if not features:
        raise ValueError("There is nothing to judge: no similarity was measured.")
    closer, farther, same = (
        [difference for difference in features if difference.outcome == outcome]
        for outcome in ("better", "worse", "equal")
    )
    if closer and not farther and not same:
        answer = "Alignment helped the hidden states: they are closer to the teacher's features by every measure."
    elif farther and not closer and not same:
        answer = (
            "Alignment did not help the hidden states: they are farther from the teacher's features by every measure."
        )
    elif same and not closer and not farther:
        answer = "No effect of alignment on the hidden states was found beyond the noise."
    else:
        parts = [
            _counted("closer to the teacher's features", closer, len(features)),
            _counted("farther from them" if closer else "farther from the teacher's features", farther, len(features)),
            _counted("no different beyond the noise", same, len(features)),
        ]
        if not closer:
            effect = "Alignment did not help the hidden states"
        elif farther:
            effect = "The effect of alignment on the hidden states is mixed"
        else:
            effect = "Alignment helped the hidden states in part"
        answer = f"{effect}: they are {', '.join(part for part in parts if part)}."
    shown = "; ".join(map(str, features))
    return f"{answer} {baseline} → {aligned}, after {block}: {shown}. {_of_samples(samples)}"


def _counted(what: str, differences: Sequence[Difference], of: int) -> str:
    if not differences:
        return ""
    return f"{what} by {len(differences)} of {of} measures ({', '.join(d.measure for d in differences)})"


def _of_samples(samples: Sequence[Difference]) -> str:
    if not samples:
        return "Of the samples nothing was measured, so whether they became better is open."
    better = [difference.measure for difference in samples if difference.outcome == "better"]
    worse = [difference.measure for difference in samples if difference.outcome == "worse"]
    if better and not worse:
        answer = f"Samples are better by {', '.join(better)}"
    elif worse and not better:
        answer = f"Samples are worse by {', '.join(worse)}"
    elif better and worse:
        answer = f"Samples are better by {', '.join(better)} and worse by {', '.join(worse)}"
    else:
        answer = "Samples measure the same"
    unknown = ", in one evaluation whose noise isn't known" if any(d.error is None for d in samples) else ""
    return f"{answer}{unknown}: {'; '.join(map(str, samples))}."
