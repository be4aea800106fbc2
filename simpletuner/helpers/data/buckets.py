"""Aspect buckets: which size a sample is trained at, and which part of it is seen. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_ASPECT = 4.0
"""Longer than this, a picture is cropped: a side of one or two cells teaches little."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Samples of one bucket share a batch: width and height in pixels, length in frames."""

    width: int
    height: int
    frames: int = 1


@dataclass(frozen=True)
class Placement:
    """The part of a source that fills a bucket.

    ``box`` is (left, top, right, bottom) in source pixels, with fractions. ``offset`` is (top, left) in the pixels of
    the resized source, as SDXL's micro-conditioning (arXiv 2307.01952) has it.
    """

    box: tuple[float, float, float, float]
    offset: tuple[int, int]


def bucket_size(width: int, height: int, side: float, alignment: int, *, square: bool = False) -> tuple[int, int]:
    """Width and height, multiples of ``alignment``, with the source's aspect and about the area of ``side`` squared.

    Each side is the multiple nearest to the ideal one, so it is off by at most half of ``alignment`` (but is never
    less than ``alignment``). Aspects beyond ``MAX_ASPECT`` get the bucket of that aspect.
    """
    aspect = 1.0 if square else min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    root = math.sqrt(aspect)
    return _nearest_multiple(side * root, alignment), _nearest_multiple(side / root, alignment)


def area_side(megapixels: float) -> float:
    """The side in pixels of the square with this area; a megapixel is 1024 × 1024."""
    return 1024 * math.sqrt(megapixels)


def clip_length(available: int, wanted: int, frame_ratio: int) -> int:
    """The longest clip of ``1 + k * frame_ratio`` frames that neither ``available`` nor ``wanted`` forbids; 0 if none.

    A causal video VAE encodes the first frame alone and then ``frame_ratio`` frames at a time.
    """
    longest = min(available, wanted)
    return 0 if longest < 1 else longest - (longest - 1) % frame_ratio


def place(width: int, height: int, bucket: Bucket, *, crop: bool, crop_pct: float = 1.0) -> Placement:
    """The centre of the source that has the bucket's aspect; without ``crop``, all of it (stretched a little).

    Args:
        crop_pct: in (0, 1]: the source is resized until it overlaps the bucket by 1 / ``crop_pct``, and then cut. 0.875
            with a bucket of 224 pixels a side is Resize(256) and CenterCrop(224).
    """
    if not crop:
        return Placement((0.0, 0.0, float(width), float(height)), (0, 0))
    scale = max(bucket.width / width, bucket.height / height) / crop_pct
    left = max(0.0, (width - bucket.width / scale) / 2)
    top = max(0.0, (height - bucket.height / scale) / 2)
    return Placement((left, top, width - left, height - top), (round(top * scale), round(left * scale)))


def _nearest_multiple(length: float, alignment: int) -> int:
    return max(1, math.floor(length / alignment + 0.5)) * alignment
