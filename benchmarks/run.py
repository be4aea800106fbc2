"""Runs every benchmark of speed and memory, and rewrites its section of RESULTS.md.

    python benchmarks/run.py [--json FILE] [--only NAME ...]

On a GPU where there is one, into a section of its own. `convergence.py`, which takes hours, and `server_load.py`, which
needs the extra `webui`, are run by themselves.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from figures import Figure, Layout, as_markdown, as_terminal, layout_in_rows, machine_line, pick_device
from results import write_section
from rich.console import Console

BENCHMARKS = ("step_overhead", "trainer_step", "cache_build", "manifold_loss", "feature_formats", "flops")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="leave RESULTS.md as it is")
    arguments = parser.parse_args()
    device, console, measured, failed = pick_device(), Console(), dict[str, list[Figure]](), list[str]()
    machine = machine_line(device)
    console.print(machine, highlight=False)
    for name in arguments.only:
        started = time.perf_counter()
        try:
            measured[name] = importlib.import_module(name).measure(device)
        except Exception:  # noqa: BLE001 - the others' figures are not to be lost
            console.print_exception()
            failed.append(name)
            continue
        console.print(*as_terminal(_layout(name, measured[name])))
        console.print(f"{name}: {time.perf_counter() - started:.0f} s", highlight=False)
    if arguments.json is not None:
        rows = [
            asdict(figure) | {"benchmark": name, "target": figure.target, "holds": figure.holds}
            for name, figures in measured.items()
            for figure in figures
        ]
        content = {"machine": machine, "date": str(date.today()), "figures": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. RESULTS.md stays as it was.")
    if tuple(arguments.only) == BENCHMARKS:
        write_section(f"speed on {device.type}", _section(measured, machine, device))


def _layout(name: str, figures: list[Figure]) -> Layout:
    """The benchmark's own, if it has one."""
    own = getattr(importlib.import_module(name), "layout", layout_in_rows)
    return own(figures)


def _section(measured: dict[str, list[Figure]], machine: str, device: torch.device) -> str:
    lines = [
        f"## Speed and memory, {device.type.upper()}",
        "",
        f"`python benchmarks/run.py` · {date.today()} · {machine}",
        "",
    ]
    lines += [
        "A floor is what was to be expected at best, worked out from operations or bytes before measuring. Ratios of "
        "times are medians over repeats taken in turns.",
    ]
    for name, figures in measured.items():
        about = (importlib.import_module(name).__doc__ or name).partition("\n")[0]
        lines += ["", f"### {about}", "", *as_markdown(_layout(name, figures))[:-1]]
    missed = [figure.name for figures in measured.values() for figure in figures if figure.holds is False]
    lines += ["", "Every target holds." if not missed else f"Missed: {'; '.join(missed)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
