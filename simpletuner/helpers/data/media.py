"""Reads images and clips as RGB, upright, and cut to their bucket: float pixels in [0, 1]."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simpletuner.helpers.data.buckets import Bucket, Placement
from simpletuner.helpers.data.errors import MediaError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})

# What Pillow raises for broken files, beyond OSError for truncated ones: SyntaxError (PNG, EXIF), ValueError,
# EOFError, struct.error (headers) and the guard against files that unpack to gigabytes.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_VIDEO_ERRORS = (av.error.FFmpegError, OSError, ValueError)


def is_video(path: Path) -> bool:
    """Whether the file is read as a clip."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def measure(path: Path, max_frames: int) -> tuple[int, int, int]:
    """Width, height and usable frames (at most ``max_frames``) of a file, found by decoding them.

    A truncated file has a healthy header, so only decoding finds it. Raises ``MediaError``.
    """
    width = height = frames = 0
    for frame in _read(path, range(max_frames)):
        if frames > 0 and frame.size != (width, height):
            raise MediaError(path, f"has frames of {width}×{height} and of {frame.width}×{frame.height} pixels")
        width, height, frames = frame.width, frame.height, frames + 1
    if frames == 0:
        raise MediaError(path, "holds no picture")
    return width, height, frames


def load_pixels(
    path: Path,
    bucket: Bucket,
    placement: Placement,
    *,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    frames: Sequence[int] | None = None,
) -> Tensor:
    """The pixels of a sample as the VAE sees them: ``(T, 3, H, W)``, float32 in [0, 1].

    Args:
        size: width and height that the upright picture must have, as ``placement`` is meant for them.
        stride: every how many frames of the file one frame of the clip is taken.
        frames: which of the clip's frames to return, ascending; None for all of ``bucket.frames``.

    Raises ``MediaError`` for an unreadable file, one of another size, or one that has fewer frames.
    """
    wanted = [index * stride for index in (range(bucket.frames) if frames is None else frames)]
    pictures = []
    for frame in _read(path, wanted):
        if size is not None and frame.size != size:
            raise MediaError(path, f"has {frame.width}×{frame.height} pixels now, not {size[0]}×{size[1]}")
        target = (bucket.width, bucket.height)
        pictures.append(np.asarray(frame.resize(target, Image.Resampling.BICUBIC, box=placement.box)))
    if len(pictures) != len(wanted):
        raise MediaError(path, f"has only {len(pictures)} of the {len(wanted)} frames asked for")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float().div_(255)


def _read(path: Path, wanted: Sequence[int]) -> Iterator[Image.Image]:
    if is_video(path):
        yield from _read_video(path, wanted)
    elif 0 in wanted:
        yield read_image(path)


def read_image(path: Path) -> Image.Image:
    """A picture as 8-bit RGB, upright, what is transparent white. Raises ``MediaError``."""
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise MediaError(path, "is no image, or a damaged one") from error
    except _IMAGE_ERRORS as error:
        raise MediaError(path, error) from error


def _read_video(path: Path, wanted: Sequence[int]) -> Iterator[Image.Image]:
    """The frames asked for, as long as the file has them; nothing beyond the last one is decoded."""
    if not wanted:
        return
    chosen, last = frozenset(wanted), max(wanted)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(path, "has no video stream")
            container.streams.video[0].thread_type = "AUTO"
            for index, frame in enumerate(container.decode(video=0)):
                if index in chosen:
                    # Telephones store turned frames and the angle (counter-clockwise) beside them.
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                    yield Image.fromarray(np.ascontiguousarray(upright))
                if index == last:
                    return
    except MediaError:
        raise
    except _VIDEO_ERRORS as error:
        raise MediaError(path, getattr(error, "strerror", None) or error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode; what is transparent becomes white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """8-bit grey from 16-bit integers or from floats in [0, 1]: Pillow's own conversion clips instead of scaling.

    Raises ``ValueError`` for values beyond that, whose scale nothing tells; a thousandth is rounding.
    """
    values = cast(NDArray[np.float64], np.asarray(image, dtype=np.float64))
    full_scale = 1.0 if image.mode == "F" else 65535.0
    lowest, highest = float(values.min()), float(values.max())
    if not -0.001 * full_scale <= lowest <= highest <= 1.001 * full_scale:
        raise ValueError(f"has values from {lowest:g} to {highest:g}, not 0 to {full_scale:g}: save it with 8 bits")
    return Image.fromarray(np.rint(np.clip(values / full_scale, 0, 1) * 255).astype(np.uint8))
