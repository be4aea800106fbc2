"""Tiny runs to be evaluated: two classes of pictures, models that sample in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from simpletuner.configuration import Config, load_config
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.training.trainer import Trainer
from tests.helpers.data.files import picture
from tests.runs import write_config

QUIET = CacheProgress(enabled=False)


def class_data(root: Path, *, cats: int = 6, dogs: int = 3, side: int = 16) -> Path:
    """Folders `cat` and `dog` of random square pictures; returns the multidatabackend.json."""
    for name, count in (("cat", cats), ("dog", dogs)):
        folder = root / "data" / name
        folder.mkdir(parents=True)
        for number in range(count):
            picture(side, side, number + (100 if name == "dog" else 0)).save(folder / f"{number}.png")
    entry = {
        "id": "classes",
        "instance_data_dir": str(root / "data"),
        "caption_strategy": "folder",
        "crop": True,
        "crop_aspect": "square",
    }
    backend = root / "multidatabackend.json"
    backend.write_text(json.dumps([entry]))
    return backend


def class_run(root: Path, model: Path, *, name: str = "run", **options: Any) -> Path:
    """The config.json of a class-conditional DiT on pixels of 8 × 8 that is to be evaluated by 10 samples."""
    data = root / "multidatabackend.json"
    values: dict[str, Any] = {
        "model_family": "dit",
        "model_type": "full",
        "data": data if data.exists() else class_data(root),
        "resolution": 8,
        "aspect_bucket_alignment": 8,
        "num_eval_images": 10,
        "evaluation_num_inference_steps": 2,
        "evaluation_batch_size": 4,
    }
    return write_config(root, model, name=name, **values | options)


def config_of(path: Path, *flags: str) -> Config:
    config, problems = load_config(path, list(flags))
    assert config is not None, problems
    return config


def trainer_of(path: Path, *flags: str) -> Trainer:
    """A trainer that is set up."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision, perhaps
    trainer = Trainer(config_of(path, *flags), live=False)
    trainer.setup()
    return trainer
