"""A pair of tiny trained runs, without and with alignment, for what compares runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simpletuner.configuration import Config, load_config
from simpletuner.helpers.training.trainer import train
from tests.helpers.data.files import write_images
from tests.runs import write_config

SIZES = [(128, 128), (192, 64)] * 10


def config_of(path: Path) -> Config:
    config, problems = load_config(path, [])
    assert config is not None, problems
    return config


def write_pair(root: Path, model: Path, **aligned: Any) -> tuple[Path, Path]:
    """Configurations of a baseline and of a run with the options `aligned`, on twenty images of two shapes and classes.

    Both keep averaged weights.
    """
    folder = write_images(root / "data", SIZES)
    for number in range(len(SIZES)):
        (folder / f"{number}.txt").write_text("cat" if number % 4 < 2 else "dog")
    data = root / "multidatabackend.json"
    entry = {"id": "small", "dataset_type": "image", "caption_strategy": "textfile", "instance_data_dir": str(folder)}
    data.write_text(json.dumps([entry]))
    common: dict[str, Any] = {"max_train_steps": 3, "use_ema": True, "ema_decay": 0.5, "learning_rate": 0.01}
    common |= {"data": data, "model_type": "full", "resolution": 128, "aspect_bucket_alignment": 64}
    return (
        write_config(root, model, name="plain", **common),
        write_config(root, model, name="aligned", **common, **aligned),
    )


def train_pair(root: Path, model: Path, **aligned: Any) -> tuple[Config, Config]:
    """The same, trained."""
    configs = [config_of(path) for path in write_pair(root, model, **aligned)]
    for config in configs:
        train(config, live=False)
    return configs[0], configs[1]
