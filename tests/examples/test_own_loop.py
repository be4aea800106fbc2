"""The example of a training loop of one's own runs, trains, and needs no more than five lines of ours."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"
OURS = re.compile(r"\b(repa|logs|hidden|capture\w*|CrepaRegularizer|simpletuner)\b")


def test_repa_takes_five_lines() -> None:
    """Every line that has a name of ours is marked, but for the import and the printing of the logs."""
    code = EXAMPLE.read_text().partition("SETTINGS = ")[2].splitlines()
    marked = [line for line in code if "# REPA" in line]
    assert 1 <= len(marked) <= 5
    unmarked = [line for line in code if OURS.search(line.partition("#")[0]) and "# REPA" not in line]
    assert all("logs.items()" in line for line in unmarked), unmarked


def test_it_trains() -> None:
    history = runpy.run_path(str(EXAMPLE))["main"](steps=12, batch_size=8)
    assert history[-1]["loss"] < history[0]["loss"]
    first, last = (sum(row["crepa_similarity"] for row in part) / 3 for part in (history[:3], history[-3:]))
    assert last > first + 0.05
