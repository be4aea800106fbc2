from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpletuner.configuration import Config, Family, Problem, check
from simpletuner.helpers.models.registry import FAMILIES

TRANSFORMER, VIDEO, UNET = (FAMILIES[name] for name in ("sd3", "wan", "sd1x"))
LOCAL = replace(TRANSFORMER, stated=frozenset({"depth", "patch_size", "latent_ratio"}))
"""What `TRANSFORMER` is once a folder's config.json has said the same of itself."""

Check = Callable[..., dict[str, Problem]]


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A valid list of one data set."""
    (tmp_path / "images").mkdir()
    path = tmp_path / "multidatabackend.json"
    path.write_text(json.dumps([{"id": "mine", "instance_data_dir": str(tmp_path / "images")}]))
    return path


@pytest.fixture
def complete(data_set: Path) -> dict[str, Any]:
    """The least that a run needs."""
    return {
        "model_family": "sd3",
        "pretrained_model_name_or_path": "org/model",
        "data_backend_config": str(data_set),
        "max_train_steps": 1000,
    }


@pytest.fixture
def problems_of(complete: dict[str, Any]) -> Check:
    """Check options on top of the least that a run needs; the problems by option."""

    def run(family: Family | None = LOCAL, depth: int | None = None, **options: Any) -> dict[str, Problem]:
        return {problem.option: problem for problem in check(Config(**{**complete, **options}), family, depth)}

    return run
