"""Samples drawn from the model while it trains: files in `output_dir/validation`, and images for the trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image
from torch import Tensor

from simpletuner.configuration import Config
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.utils.run_folder import sample_path


def validation_prompts(config: Config) -> list[str]:
    """The prompts whose embeddings a validation needs: the prompt and the negative one; none where it is off."""
    return [] if config.validation_prompt is None else [config.validation_prompt, config.validation_negative_prompt]


def validate(
    config: Config,
    foundation: ModelFoundation,
    accelerator: Accelerator,
    text: Sequence[dict[str, Tensor]],
    step: int,
    frames: int,
) -> list[Path]:
    """Samples `num_validation_images` from the prompt and writes them; returns the files (main process only).

    Args:
        text: embeddings of `validation_prompts`.
        frames: pixel frames of a training clip, for families of video.
    """
    sharded = accelerator.distributed_type is DistributedType.FSDP  # then every rank has a part of the model
    if not (sharded or accelerator.is_main_process):
        return []
    width, height = _size(config)
    wanted_frames = config.validation_num_video_frames
    seed = config.validation_seed
    device = accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # sampling leaves the training's numbers
        samples = foundation.validation_samples(
            [text[0]] * config.num_validation_images,
            text[1],
            SampleSettings(
                height,
                width,
                config.validation_num_inference_steps,
                config.validation_guidance,
                config.seed if seed is None else seed,
                frames if wanted_frames is None else wanted_frames,
            ),
        )
    return _write(samples, config, accelerator, step) if accelerator.is_main_process else []


def _size(config: Config) -> tuple[int, int]:
    """Width and height in pixels: `1024` or `1344x768`."""
    if config.validation_resolution is None:
        return config.resolution, config.resolution
    sides = [int(side) for side in config.validation_resolution.split("x")]
    return sides[0], sides[-1]


def _write(samples: Sequence[Any], config: Config, accelerator: Accelerator, step: int) -> list[Path]:
    output_dir = Path(config.output_dir)
    files = []
    for number, sample in enumerate(samples):
        is_image = isinstance(sample, Image.Image)
        path = sample_path(output_dir, step, number, ".png" if is_image else ".mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")  # whoever watches the folder sees whole files only
        if is_image:
            sample.save(beside)
        else:
            write_clip(beside, sample)
        beside.replace(path)
        files.append(path)
    images = [sample if isinstance(sample, Image.Image) else sample[0] for sample in samples]
    stacked = np.stack([np.asarray(image) for image in images])
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": stacked}, step=step, **layout)
    return files


def write_clip(path: Path, frames: Sequence[Image.Image], rate: int = 16) -> None:
    """Writes frames as an H.264 clip; sides are cut to even numbers, as the codec demands."""
    width, height = (side // 2 * 2 for side in frames[0].size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_image(frame.crop((0, 0, width, height)))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
