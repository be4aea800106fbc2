"""A benchmark's figures, and how they are timed: ratios in one run, medians of interleaved repeats."""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from results import write_section
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured number beside its target and its floor.

    Attributes:
        at_most, at_least: the target; neither for what is only reported.
        floor: what it could be at best, worked out from operations or bytes before it was measured, in the same unit.
        note: what else a reader must know, such as the times behind a ratio.
    """

    name: str
    value: float
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    floor: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device, warmups: int = 2
) -> dict[str, list[float]]:
    """Seconds of each variant, `repeats` times in turns, so that a slow moment of the machine falls on all alike.

    On a GPU they are taken between device events.
    """
    for function in variants.values():
        for _ in range(warmups):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats):
        turns = list(variants.items())
        for name, function in turns if number % 2 == 0 else reversed(turns):
            seconds[name].append(_timed(function, device))
    return seconds


def _timed(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def machine_ready(device: torch.device) -> None:
    """Waits for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def interval(seconds: Mapping[str, list[float]], over: str, under: str) -> str:
    """Between which the median ratio of repeats like these lies in nine of ten runs, from redrawn repeats."""
    ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return f"{medians[100]:.3f} to {medians[-100]:.3f} in nine of ten runs"


def median(seconds: Iterable[float]) -> float:
    return statistics.median(seconds)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine_line(device: torch.device) -> str:
    """On what was measured, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    what = f"{platform.machine()}, {cores} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}; {what}" if device.type == "cuda" else what


Layout = list[tuple[list[str], list[list[str]]]]
"""Tables, each of headings and rows of cells."""


def layout_in_rows(figures: Iterable[Figure]) -> Layout:
    """One table with a row a figure."""
    headings = ["figure", "value", "target", "holds", "floor", "note"]
    holds = {True: "yes", False: "no", None: ""}
    rows = [
        [
            figure.name,
            shown(figure.value, figure.unit),
            figure.target,
            holds[figure.holds],
            "" if figure.floor is None else shown(figure.floor, figure.unit, digits=3),
            figure.note,
        ]
        for figure in figures
    ]
    return [(headings, rows)]


def shown(value: float, unit: str, *, digits: int = 4) -> str:
    """A number with its unit."""
    return f"{value:.{digits}g} {unit}".rstrip()


def as_terminal(layout: Layout) -> Iterator[Table]:
    """For a terminal."""
    for headings, rows in layout:
        table = Table()
        for heading in headings:
            table.add_column(heading, justify="right" if _is_number(heading) else "left")
        for row in rows:
            table.add_row(*row)
        yield table


def as_markdown(layout: Layout) -> list[str]:
    """The lines of Markdown tables, an empty one after each."""
    lines = []
    for headings, rows in layout:
        lines += [_row(headings), _row("---:" if _is_number(heading) else "---" for heading in headings)]
        lines += [*map(_row, rows), ""]
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _is_number(heading: str) -> bool:
    return heading not in ("figure", "target", "holds", "note", "tokens and format")


def run_alone(
    measure: Callable[[torch.device], list[Figure]],
    about: str | None,
    layout: Callable[[list[Figure]], Layout] = layout_in_rows,
    section: str | None = None,
) -> None:
    """The command line of one benchmark: measures and prints.

    Args:
        section: of RESULTS.md, which `--record` writes; for a benchmark that isn't one of `run.py`'s.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if section is not None:
        parser.add_argument("--record", action="store_true", help="write the figures into RESULTS.md")
    arguments = parser.parse_args()
    device = pick_device()
    console, machine = Console(), machine_line(device)
    console.print(machine)
    measured = layout(measure(device))
    console.print(*as_terminal(measured))
    if section is not None and arguments.record:
        command = f"`python benchmarks/{Path(sys.argv[0]).name} --record` · {date.today()} · {machine}"
        title = (about or section).strip().partition("\n")[0].rstrip(".")
        write_section(section, "\n".join([f"## {title}", "", command, "", *as_markdown(measured)[:-1]]))
