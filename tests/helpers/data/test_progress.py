"""What is told of the making of caches where there is no terminal."""

from __future__ import annotations

import re

import pytest

from simpletuner.helpers.data import progress as progress_module
from simpletuner.helpers.data.progress import LINES, CacheProgress


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of tasks that take no time."""
    monkeypatch.setattr(progress_module, "QUIET_SECONDS", -1.0)


@pytest.mark.usefixtures("every_line")
def test_a_long_task_writes_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with CacheProgress(enabled=True) as progress:
        advance = progress.task("Encoding samples", 1000)
        for _ in range(250):
            advance(4)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and len(lines) == LINES
    assert all(re.fullmatch(r"Encoding samples: \d+/1000, [\d.]+ records/s, \d+ s left", line) for line in lines[:-1])
    assert re.fullmatch(r"Encoding samples: 1000/1000, [\d.]+ records/s", lines[-1])


def test_a_short_task_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with CacheProgress(enabled=True) as progress:
        advance = progress.task("Encoding samples", 10)
        for _ in range(10):
            advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("every_line")
def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with CacheProgress(enabled=False) as progress:
        progress.say("something")
        assert list(progress.track(range(5), "Checking what is cached", total=5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("every_line")
def test_a_tracked_task_gives_its_items_and_tells_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with CacheProgress(enabled=True) as progress:
        progress.say("2 samples [need] features")
        assert list(progress.track("ab", "Checking what is cached", total=2)) == ["a", "b"]
    first, half, whole = capsys.readouterr().err.splitlines()
    assert first == "2 samples [need] features"
    assert half.startswith("Checking what is cached: 1/2, ") and whole.startswith("Checking what is cached: 2/2, ")


def test_a_task_of_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with CacheProgress(enabled=True) as progress:
        assert list(progress.track([], "Checking what is cached", total=0)) == []
        progress.task("Encoding samples", 0)
    assert capsys.readouterr().err == ""
