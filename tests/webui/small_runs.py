"""Runs for tests: records whose commands are a line of Python, started by the real keeper, and waiting for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from simpletuner.helpers.utils.run_folder import METRICS_FILE, RunFacts, write_facts
from simpletuner.webui.keeper import LOG_FILE, exit_file, process_file, process_mark
from simpletuner.webui.records import Command, Record, Start, config_file, file_mark, write_record
from simpletuner.webui.runs import Run, is_active, read_run, stop_run
from simpletuner.webui.site import Site
from tests.runs import write_config

Found = TypeVar("Found")
ID = "20300102-030405-0000000a"
# Says when it is ready, and then waits for SIGTERM.
PATIENT = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
signal.alarm(280)  # so that no failed test leaves it behind
print("ready", flush=True)
while True: signal.pause()
"""
# Heeds no SIGTERM.
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.alarm(280)  # so that no failed test leaves it behind
print("ready", flush=True)
while True: signal.pause()
"""


def until(condition: Callable[[], Found], seconds: float = 90.0) -> Found:
    """What the condition gives as soon as that is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def make_record(
    site: Site,
    *command: str,
    run_id: str = ID,
    project: str = "small",
    kind: Command = "train",
    resumed: bool = False,
    output_dir: Path | None = None,
    started: float | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """Writes the record of a run that hasn't begun to write anything; returns its folder."""
    output = site.roots[0] / "output" if output_dir is None else output_dir
    output.mkdir(parents=True, exist_ok=True)
    folder = site.runs / run_id
    folder.mkdir(parents=True)
    (folder / LOG_FILE).touch()
    config_file(folder, 1).write_text(json.dumps({} if config is None else config))
    start = Start(
        time.time() if started is None else started,
        resumed,
        [sys.executable, *command],
        file_mark(output / "run.json"),
        file_mark(output / METRICS_FILE),
    )
    write_record(folder, Record(run_id, project, kind, str(output), [start]))
    return folder


def keep(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the keeper of a record as a server does, and waits until it has started the command."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", "simpletuner.webui.keeper", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert keeper.stdout is not None
    with keeper.stdout as told:
        told.read()
    return keeper


def put_processes(folder: Path) -> None:
    """As if this process were the trainer."""
    told = {"pid": os.getpid(), "mark": process_mark(os.getpid())}
    process_file(folder, 1).write_text(json.dumps({"keeper": told, "child": told}))


def write_rows(output: Path, steps: Iterable[int], *, total: int = 10, first: int = 0, **values: Any) -> None:
    """What a trainer that was started at step `first` has written after these steps."""
    lines = [json.dumps({"step": step, "loss": 1 / step, "step_seconds": 0.5} | values) + "\n" for step in steps]
    (output / METRICS_FILE).write_text("".join(lines))
    write_facts(output, RunFacts(total, first))


def write_checkpoint(output: Path, step: int, files: dict[str, bytes] | None = None) -> Path:
    """An intact checkpoint of these files."""
    folder = output / f"checkpoint-{step}"
    content = {"pytorch_lora_weights.safetensors": b"lora"} if files is None else files
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sizes = {name: len(data) for name, data in content.items()}
    (folder / "manifest.json").write_text(json.dumps({"state": {"step": step}, "files": sizes}))
    return folder


def put_exit(folder: Path, code: int) -> None:
    """As if the trainer had ended with this code."""
    exit_file(folder, 1).write_text(json.dumps({"code": code, "ended": time.time()}))


def stopped(site: Site, run: Run) -> Run:
    """Stops a trainer that is still importing, which takes no time."""
    stop_run(site, run.id)
    return until(lambda: None if is_active(found := read_run(site, run.id)) else found)


def write_project(site: Site, model: Path, **options: Any) -> str:
    """The project "small": a training of a tiny model, in the folder `output` if nothing else is said."""
    root = site.roots[0]
    data = root / "multidatabackend.json"
    options = {"output_dir": str(root / "output")} | options
    path = write_config(root, model, name="written", data=data if data.is_file() else None, **options)
    site.configs.mkdir(exist_ok=True)
    path.replace(site.configs / "small.json")
    return "small"
