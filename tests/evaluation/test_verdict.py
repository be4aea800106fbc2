"""The words say what the numbers do, and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.evaluation.verdict import Difference, verdict

BETTER = [Difference("CKNNA", 0.1, 0.3, error=0.02), Difference("CKA", 0.2, 0.5, error=0.05)]
WORSE = [Difference("CKNNA", 0.3, 0.1, error=0.02), Difference("CKA", 0.5, 0.2, error=0.05)]
EQUAL = [Difference("CKNNA", 0.1, 0.12, error=0.02), Difference("CKA", 0.2, 0.2, error=0.0)]


def judged(features: list[Difference], samples: list[Difference] | None = None) -> str:
    return verdict("aligned", "plain", "mid", features, samples or [])


def test_closer_by_every_measure() -> None:
    assert judged(BETTER) == (
        "Alignment helped the hidden states: they are closer to the teacher's features by every measure. "
        "plain → aligned, after mid: "
        "CKNNA 0.1 → 0.3 (+0.2 ± 0.02); CKA 0.2 → 0.5 (+0.3 ± 0.05). "
        "Of the samples nothing was measured, so whether they became better is open."
    )


def test_farther_by_every_measure() -> None:
    assert judged(WORSE).startswith(
        "Alignment did not help the hidden states: they are farther from the teacher's features by"
    )


def test_within_the_noise() -> None:
    assert judged(EQUAL).startswith("No effect of alignment on the hidden states was found beyond the noise.")


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([BETTER[0], EQUAL[1]], "helped the hidden states in part: they are closer to the teacher's features by 1 of 2 "
         "measures (CKNNA), no different beyond the noise by 1 of 2 measures (CKA)."),
        ([BETTER[0], WORSE[1]], "is mixed: they are closer to the teacher's features by 1 of 2 measures "
         "(CKNNA), farther from them by 1 of 2 measures (CKA)."),
        ([WORSE[0], EQUAL[1]], "did not help the hidden states: they are farther from the teacher's features by 1 of"),
    ],
)  # fmt: skip
def test_measures_that_disagree(features: list[Difference], words: str) -> None:
    assert words in judged(features)


def test_samples_are_told_apart_from_hidden_states() -> None:
    fid, recall = Difference("fid", 90.0, 80.0, higher_is_better=False), Difference("recall", 0.5, 0.4)
    told = judged(WORSE, [fid])
    assert told.startswith("Alignment did not help")
    assert told.endswith("Samples are better by fid, in one evaluation whose noise isn't known: fid 90 → 80 (-10).")
    assert "Samples are better by fid and worse by recall" in judged(BETTER, [fid, recall])
    assert "Samples are worse by recall" in judged(BETTER, [recall])
    assert "Samples measure the same" in judged(BETTER, [Difference("recall", 0.5, 0.5)])


def test_nothing_measured_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="nothing to judge"):
        judged([])


@given(
    baseline=st.floats(-10, 10),
    aligned=st.floats(-10, 10),
    error=st.floats(0, 1),
    higher=st.booleans(),
)
def test_outcomes_mirror_each_other(baseline: float, aligned: float, error: float, higher: bool) -> None:
    """Exchanging the runs, or the direction, exchanges better and worse and leaves equal ones equal."""
    opposite = {"better": "worse", "worse": "better", "equal": "equal"}
    outcome = Difference("x", baseline, aligned, higher, error).outcome
    assert Difference("x", aligned, baseline, higher, error).outcome == opposite[outcome]
    assert Difference("x", baseline, aligned, not higher, error).outcome == opposite[outcome]
