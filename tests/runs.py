"""Small real training runs: a data set, a config.json, and the command that trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics
from tests.helpers.data.files import numbered_frames, write_clip, write_images

ROOT = Path(__file__).parents[1]
SIZES = [(64, 64), (96, 64), (64, 96), (64, 64), (96, 64), (64, 64), (80, 64)]


def write_data(root: Path, *, kind: str = "image", crop_aspect: str = "preserve") -> Path:
    """Seven images of several shapes, or two clips, with captions; returns the multidatabackend.json."""
    entry: dict[str, Any] = {"id": "small", "dataset_type": kind, "crop_aspect": crop_aspect}
    folder = root / "data"
    if kind == "image":
        write_images(folder, SIZES)
        entry |= {"caption_strategy": "textfile"}
    else:
        folder.mkdir(parents=True)
        for name in ("one", "two"):
            write_clip(folder / f"{name}.mp4", numbered_frames(9, 64, 48))
        entry |= {"caption_strategy": "filename", "video": {"num_frames": 9}}
    entry["instance_data_dir"] = str(folder)
    backend = root / "multidatabackend.json"
    backend.write_text(json.dumps([entry]))
    return backend


def write_config(root: Path, model: Path, *, name: str = "run", data: Path | None = None, **options: Any) -> Path:
    """`root/{name}.json`: a run of few steps in fp32 on tiny images; it writes to `root/{name}`."""
    values: dict[str, Any] = {
        "model_family": model.name,
        "pretrained_model_name_or_path": str(model),
        "data_backend_config": str(write_data(root) if data is None else data),
        "output_dir": str(root / name),
        "cache_dir": str(root / "caches"),
        "resolution": 64,
        "aspect_bucket_alignment": 16,
        "mixed_precision": "no",
        "lora_rank": 4,
        "max_train_steps": 4,
        "train_batch_size": 2,
        "max_workers": 0,
        "report_to": "none",
    }
    path = root / f"{name}.json"
    path.write_text(json.dumps(values | options))
    return path


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python {command}` from the project's root and waits for it."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def train(config: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """`simpletuner train --config {config} {flags}` in a process of its own."""
    return run("-m", "simpletuner.cli", "train", "--config", str(config), *flags)


def metrics(root: Path, name: str = "run") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl without what depends on the clock."""
    rows = read_metrics(root / name / METRICS_FILE)
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]
