"""The example of a training loop of one's own runs, trains, and needs no more than five lines of ours."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"


def test_repa_takes_five_lines() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if "# REPA" in line]
    assert 1 <= len(lines) <= 5
    ours = [line for line in EXAMPLE.read_text().splitlines() if "repa." in line or "capture" in line]
    unmarked = [line for line in ours if "# REPA" not in line and "import" not in line]
    assert unmarked == []


def test_it_trains() -> None:
    history = runpy.run_path(str(EXAMPLE))["main"](steps=12, batch_size=8)
    assert history[-1]["loss"] < history[0]["loss"]
    first, last = (sum(row["similarity"] for row in part) / 3 for part in (history[:3], history[-3:]))
    assert last > first + 0.05
