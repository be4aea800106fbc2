"""Records of runs as the server and the trainer leave them, written without training anything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from simpletuner.helpers.utils.run_folder import (
    MANIFEST,
    METRICS_FILE,
    RunFacts,
    checkpoint_folder,
    sample_path,
    write_facts,
)
from simpletuner.webui.keeper import LOG_FILE, exit_file, process_file, process_mark
from simpletuner.webui.records import Command, Record, Start, config_file, stop_file, write_record
from simpletuner.webui.runs import Run, read_run
from simpletuner.webui.site import Site

A_DAY = 86_400


def row(step: int, **values: float) -> dict[str, float]:
    """A step's row of an aligned training."""
    usual = {
        "loss": 0.9 / step,
        "base_loss": 1 / step,
        "crepa_loss": -0.1,
        "crepa_similarity": 0.2,
        "crepa_weight": 0.5,
        "learning_rate": 1e-4,
        "step_seconds": 0.5,
        "grad_norm": 1.0,
    }
    return {"step": step} | usual | values


def plain_row(step: int) -> dict[str, float]:
    """A step's row of a training without alignment."""
    return {name: value for name, value in row(step).items() if not name.startswith("crepa_")}


def write_rows(output_dir: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replaces a run's metrics, as a trainer does when it starts."""
    output_dir.mkdir(parents=True, exist_ok=True)
    beside = output_dir / "metrics.partial"
    beside.write_text("".join(json.dumps(values) + "\n" for values in rows), encoding="utf-8")
    beside.replace(output_dir / METRICS_FILE)


def append_row(run: Run, values: dict[str, Any]) -> None:
    """Goes on with a run's metrics, as a trainer does after a step."""
    with (run.output_dir / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def draw_sample(run: Run, step: int, number: int = 0, suffix: str = ".png") -> None:
    """A validation sample."""
    path = sample_path(run.output_dir, step, number, suffix)
    path.parent.mkdir(exist_ok=True)
    if suffix == ".png":
        Image.new("RGB", (8, 8), (step, number, 0)).save(path)
    else:
        path.write_bytes(b"no clip that anyone plays")


def save_checkpoint(run: Run, step: int, *, torn: bool = False) -> None:
    """A checkpoint with a LoRA of 2,000 bytes; `torn`: some of them are missing."""
    folder = checkpoint_folder(run.output_dir, step)
    folder.mkdir()
    name = "pytorch_lora_weights.safetensors"
    (folder / name).write_bytes(b"w" * (1_000 if torn else 2_000))
    (folder / MANIFEST).write_text(json.dumps({"state": {"step": step}, "files": {name: 2_000}}))


def record_run(
    site: Site,
    number: int = 1,
    *,
    project: str = "sky",
    command: Command = "train",
    rows: Sequence[dict[str, Any]] = (),
    total: int = 10,
    code: int | None = 0,
    child: int | None = None,
    stopping: float | None = None,
    log: str = "",
    config: dict[str, Any] | None = None,
) -> Run:
    """A run of `total` steps that began a day ago, `number` hours later.

    Args:
        code: how it ended; None: nobody saw its end. child: the pid of the trainer that still runs, instead.
        stopping: how many seconds ago it was asked to stop.
    """
    run_id = f"20260101-{number:06d}-{number:08x}"
    folder, output_dir = site.runs / run_id, site.configs / "output" / f"{project}-{number}"
    folder.mkdir(parents=True)
    began = time.time() - A_DAY + number * 3600
    write_record(folder, Record(run_id, project, command, str(output_dir), [Start(began, False, ["true"], "", "")]))
    values = {"model_family": "sd3", "output_dir": str(output_dir)} | ({} if config is None else config)
    config_file(folder, 1).write_text(json.dumps(values))
    (folder / LOG_FILE).write_text(log)
    if rows:
        write_rows(output_dir, rows)
        write_facts(output_dir, RunFacts(total, 0))
    if child is not None:
        identity = {"pid": child, "mark": process_mark(child)}
        process_file(folder, 1).write_text(json.dumps({"keeper": identity, "child": identity}))
    elif code is not None:
        exit_file(folder, 1).write_text(json.dumps({"code": code, "ended": began + 125}))
    if stopping is not None:
        stop_file(folder, 1).touch()
        os.utime(stop_file(folder, 1), (0, time.time() - stopping))
    return read_run(site, run_id)
