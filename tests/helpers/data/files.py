"""Small real images and clips, and the configuration that goes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import DatasetEntry
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.data.scan import find_samples
from simpletuner.helpers.models.registry import FAMILIES


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def write_images(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """`0.png`, `1.png` ... of these widths and heights, each with a caption of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        picture(width, height, number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def write_clip(path: Path, frames: list[NDArray[np.uint8]], rotation: int = 0) -> Path:
    """A lossless clip of `(H, W, 3)` frames, shown turned counter-clockwise by `rotation` degrees."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=8, options={"crf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered_frames(count: int, width: int = 32, height: int = 16) -> list[NDArray[np.uint8]]:
    """Flat frames; frame i has the grey value 10 i."""
    return [np.full((height, width, 3), 10 * index, np.uint8) for index in range(count)]


def tiny_options(root: Path, **changes: Any) -> dict[str, Any]:
    """Options of tiny sizes, with caches in `root/caches`."""
    values: dict[str, Any] = {
        "cache_dir": str(root / "caches"),
        "resolution": 64,
        "aspect_bucket_alignment": 16,
        "max_workers": 0,
        "vae_batch_size": 2,
        "caption_dropout_probability": 0.0,
    }
    return values | changes


def make_config(root: Path, **changes: Any) -> Config:
    """A configuration for what needs no model."""
    values = {"model_family": "sd3", "pretrained_model_name_or_path": "nobody/nothing"}
    return Config(**values | tiny_options(root, **changes))


def make_entry(folder: Path, **changes: Any) -> DatasetEntry:
    return DatasetEntry(**({"id": "set", "instance_data_dir": str(folder)} | changes))


def scan(folder: Path, config: Config, **changes: Any) -> list[Sample]:
    """The samples of one folder."""
    return find_samples([make_entry(folder, **changes)], config, FAMILIES[config.model_family])
