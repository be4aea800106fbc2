"""`simpletuner train` of every family: caches, a checkpoint, and going on from it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.configuration import Config
from simpletuner.helpers.training.trainer import train
from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics
from tests.families import CASES
from tests.helpers.data.files import numbered_frames, write_clip, write_images


def options_of(name: str, root: Path, model: Path, teacher: Path) -> dict[str, Any]:
    """A LoRA of four steps with the family's alignment loss on two images, or clips, of the case's size."""
    case = CASES[name]
    frames, height, width = case.pixels
    data, entry = root / "data", {"id": "small", "dataset_type": "image", "caption_strategy": "textfile"}
    if case.is_video:
        data.mkdir(parents=True)
        for caption in ("dog", "cat"):
            write_clip(data / f"{caption}.mp4", numbered_frames(frames, width, height))
        entry |= {"dataset_type": "video", "caption_strategy": "filename", "video": {"num_frames": frames}}
    else:
        write_images(data, [(width, height)] * 2)
    backend = root / "multidatabackend.json"
    backend.write_text(json.dumps([entry | {"instance_data_dir": str(data)}]))
    encoder = "urepa_model" if case.prefix == "urepa" else "crepa_encoder"
    return {
        "model_family": case.name,
        "pretrained_model_name_or_path": str(model),
        "data_backend_config": str(backend),
        "cache_dir": str(root / "cache"),
        "resolution": round((height * width) ** 0.5),
        "aspect_bucket_alignment": math.gcd(height, width),
        "mixed_precision": "no",
        "lora_rank": 4,
        "train_batch_size": 2,
        "max_workers": 0,
        "max_train_steps": 4,
        "checkpoint_step_interval": 2,
        "report_to": "none",
        f"{case.prefix}_enabled": True,
        encoder: str(teacher),
        f"{case.prefix}_encoder_image_size": 56,
    }


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    name: str, tmp_path: Path, tiny_folder: Callable[[str], Path], tiny_teacher: Path
) -> None:
    options = options_of(name, tmp_path, tiny_folder(name), tiny_teacher)
    whole, half = tmp_path / "whole", tmp_path / "half"
    train(Config(**options, output_dir=str(whole)), live=False)
    first = whole / "checkpoint-2"
    assert first.is_dir()
    half.mkdir()
    first.rename(half / "checkpoint-2")
    train(Config(**options, output_dir=str(half), resume_from_checkpoint="latest"), live=False)
    ends = [read_metrics(folder / METRICS_FILE)[-2:] for folder in (whole, half)]
    assert [row["step"] for row in ends[0]] == [3, 4]
    for one, other in zip(*ends, strict=True):
        assert one["loss"] == other["loss"]
        assert f"{CASES[name].prefix}_loss" in one


def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_cached(
    tmp_path: Path, tiny_folder: Callable[[str], Path], tiny_teacher: Path
) -> None:
    """Encoding a data set takes hours of a GPU, and what refuses the model is in its JSON."""
    folder = Path(shutil.copytree(tiny_folder("wan"), tmp_path / "model"))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"boundary_ratio": 0.875}))
    options = options_of("wan", tmp_path, folder, tiny_teacher)
    with pytest.raises(ValueError, match="two experts"):
        train(Config(**options, output_dir=str(tmp_path / "run")), live=False)
    assert not (tmp_path / "cache").exists()
