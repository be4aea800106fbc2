"""A benchmark's figures, and how they are timed: ratios in one run, medians of interleaved repeats."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
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


def run_alone(measure: Callable[[torch.device], list[Figure]], about: str | None) -> None:
    """The command line of one benchmark: measures and prints."""
    argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = pick_device()
    console = Console()
    console.print(machine_line(device))
    console.print(as_table(measure(device)))


def as_table(figures: Iterable[Figure]) -> Table:
    """For a terminal."""
    table = Table()
    for heading in ("figure", "value", "target", "holds", "floor", "note"):
        table.add_column(heading, justify="right" if heading in ("value", "floor") else "left")
    for figure in figures:
        table.add_row(*cells(figure))
    return table


def cells(figure: Figure) -> tuple[str, str, str, str, str, str]:
    """Name, value, target, verdict, floor and note as text."""
    holds = {True: "yes", False: "no", None: ""}[figure.holds]
    floor = "" if figure.floor is None else f"{figure.floor:.3g} {figure.unit}"
    return figure.name, f"{figure.value:.4g} {figure.unit}", figure.target, holds, floor, figure.note
