"""Numbers, sizes, durations and times as readers of each language write them."""

from __future__ import annotations

import pytest

from simpletuner.translation import LANGUAGES
from simpletuner.webui import wording


@pytest.mark.parametrize(
    ("value", "language", "shown"),
    [
        (0.123456, "en", "0.1235"),
        (0.123456, "es", "0,1235"),
        (-1234.5678, "en", "-1235"),
        (0, "en", "0"),
        (0.0001, "hi", "0.0001"),
        (3.2e-9, "en", "3.2E-9"),
        (float("nan"), "en", "–"),
        (float("inf"), "en", "–"),
        (None, "ja", "–"),
    ],
)
def test_numbers(value: float | None, language: str, shown: str) -> None:
    assert wording.number(value, language) == shown


def test_counts_and_shares() -> None:
    assert wording.count(12_000, "en") == "12,000"
    assert wording.count(12_000, "es") == "12.000"
    assert wording.count(None, "en") == "–"
    assert wording.percent(0.5, "en") == "50%"
    assert wording.percent(None, "en") == "–"


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (1_234_567, "1.23 MB"), (999_600_000, "1 GB"), (5e15, "5000 TB")],
)
def test_sizes(amount: float, shown: str) -> None:
    assert wording.size(amount, "en") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 sec"),
        (59.6, "1 min"),
        (61, "1 min 1 sec"),
        (7_500, "2 hr 5 min"),
        (7_200, "2 hr"),
        (200_000, "2 days 7 hr"),
        (-3, "0 sec"),
        (None, "–"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert wording.duration(seconds, "en") == shown


def test_step_times_and_moments() -> None:
    assert wording.step_time(0.12345, "es") == "0,123 s"
    assert wording.step_time(0, "en") == "0 sec"
    assert wording.step_time(None, "en") == "–"
    assert wording.moment(None, "en") == "–"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_is_known(language: str) -> None:
    parts = [
        wording.number(1.5, language),
        wording.duration(7_500, language),
        wording.step_time(1.5, language),
        wording.moment(1_700_000_000.0, language),
        wording.percent(0.25, language),
    ]
    assert all(parts)
    assert "duration" not in "".join(parts)
