"""What a configuration will do, told beforehand: the coefficient over the run, and the size of the feature cache.

The arithmetic of the cache is the trainer's (``helpers.data.estimate``, ``helpers.training.alignment.geometry``), which
imports torch; tests hold the two together.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpletuner.configuration.alignment import AlignmentOptions, CrepaOptions
from simpletuner.configuration.cache_sizes import feature_bytes, on_disk
from simpletuner.configuration.coefficient import planned_coefficient
from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import DatasetEntry
from simpletuner.configuration.encoders import encoder_patch, encoder_width
from simpletuner.configuration.family import Family
from simpletuner.configuration.validation import build
from simpletuner.webui.confinement import Refused, inside

MOST_POINTS = 200

# Of helpers.data.media, which imports torch.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})

DINOV2_NATIVE, EFFICIENTNET = 518, "efficientnet_lite0"
# Width, patch and native size of the encoder whose name doesn't tell them.
_EFFICIENTNET_FACTS = (432, 16, 224)


@dataclass(frozen=True)
class Curve:
    """The coefficient as planned: points (step, value), and where a cutoff by step ends it."""

    points: list[tuple[int, float]]
    cutoff: int | None


def coefficient_curve(options: AlignmentOptions, total_steps: int) -> Curve | None:
    """The planned coefficient over a run; None where the run's length isn't known, or leaves no room for the decay."""
    if total_steps <= 0:
        return None
    cutoff = options.cutoff_step if 0 < options.cutoff_step < total_steps else None
    every = max(1, math.ceil(total_steps / MOST_POINTS))
    ends = (options.warmup_steps, options.warmup_steps + options.decay_steps, *(() if cutoff is None else (cutoff,)))
    corners = {step + side for step in ends for side in (-1, 0)}
    shown = {*range(0, total_steps, every), total_steps - 1, *corners}
    steps = sorted(step for step in shown if 0 <= step < total_steps)
    try:
        return Curve([(step, planned_coefficient(options, total_steps, step)) for step in steps], cutoff)
    except ValueError:  # a decay over the rest of the run, of which nothing is left
        return None


@dataclass(frozen=True)
class EncoderShape:
    """What the cache's size depends on; ``native_size`` is the side in pixels at which "auto" stops growing."""

    width: int
    patch: int
    native_size: int


def encoder_shape(name: str) -> EncoderShape | None:
    """The shape of an encoder, if its name tells it."""
    if name == EFFICIENTNET:
        return EncoderShape(*_EFFICIENTNET_FACTS)
    width, patch = encoder_width(name), encoder_patch(name)
    return None if width is None or patch is None else EncoderShape(width, patch, DINOV2_NATIVE)


@dataclass(frozen=True)
class CacheEstimate:
    """The size of a feature cache in bytes; ``samples`` is None where nobody knows how many there are.

    ``reason`` says why there is no number: the teacher's width isn't known, or nothing is cached.
    """

    a_sample: int | None
    samples: int | None
    reason: Literal["unknown encoder", "not cached"] | None = None

    @property
    def total(self) -> int | None:
        """Bytes of all samples, where they are counted."""
        return None if self.a_sample is None or self.samples is None else self.a_sample * self.samples


def cache_estimate(
    options: AlignmentOptions,
    config: Config,
    family: Family | None,
    *,
    datasets: Sequence[DatasetEntry] = (),
    counts: Mapping[str, int | None] | None = None,
) -> CacheEstimate:
    """What the features take on disk, if every sample were a square of its resolution.

    ``counts`` has the number of files by ``instance_data_dir``. Without data sets one sample of ``resolution`` is
    estimated, and how many there are isn't known.
    """
    if options.is_zero or not options.caches_features:
        return CacheEstimate(None, None, "not cached")
    shape = encoder_shape(options.encoder)
    if shape is None:
        return CacheEstimate(None, None, "unknown encoder")
    used = [entry for entry in datasets if not entry.disabled]
    if not used:
        entry = DatasetEntry(dataset_type="image" if family is None else family.media)
        return CacheEstimate(on_disk(_sample_bytes(options, config, family, entry, shape)), None)
    sizes = [on_disk(_sample_bytes(options, config, family, entry, shape)) for entry in used]
    files = [_samples(entry, counts or {}) for entry in used]
    known = [count for count in files if count is not None]
    if len(known) < len(files) or sum(known) == 0:
        return CacheEstimate(round(sum(sizes) / len(sizes)), None)
    total = sum(size * count for size, count in zip(sizes, known, strict=True))
    return CacheEstimate(round(total / sum(known)), sum(known))


def _samples(entry: DatasetEntry, counts: Mapping[str, int | None]) -> int | None:
    count = counts.get(entry.instance_data_dir)
    return None if count is None else count * (2 if entry.horizontal_flip else 1)


def _sample_bytes(
    options: AlignmentOptions, config: Config, family: Family | None, entry: DatasetEntry, shape: EncoderShape
) -> int:
    side = sample_side(entry, config)
    tokens = teacher_tokens(side, options.encoder_image_size, shape, student_tokens(side, family), _scale(options))
    frames = 1
    if family is not None and family.media == "video" and entry.dataset_type == "video":
        frames = (entry.video.num_frames - 1) // family.frame_ratio + 1
    width = shape.width if options.feature_cache_dim is None else options.feature_cache_dim
    return feature_bytes(frames * tokens, width, options.feature_cache_dtype)


def _scale(options: AlignmentOptions) -> int:
    """The teacher's rows to the student's where its grid follows that: 2 for U-REPA (arXiv 2503.18414)."""
    return 1 if isinstance(options, CrepaOptions) else 2


def sample_side(entry: DatasetEntry, config: Config) -> int:
    """The side in pixels of a square sample, as its bucket has it."""
    side = float(config.resolution)
    if entry.resolution is not None:
        side = entry.resolution if entry.resolution_type == "pixel" else 1024 * math.sqrt(entry.resolution)
    alignment = config.aspect_bucket_alignment
    return max(1, math.floor(side / alignment + 0.5)) * alignment


def student_tokens(side: int, family: Family | None) -> int | None:
    """Rows, and columns, of student tokens in a square sample; a UNet's halvings round up."""
    if family is None:
        return None
    latents = side // family.latent_ratio
    return -(-latents // family.patch_size) if family.model_type == "unet" else max(1, latents // family.patch_size)


def teacher_tokens(side: int, image_size: int | str, shape: EncoderShape, student: int | None, scale: int) -> int:
    """Tokens of the teacher for a square sample of ``side`` pixels.

    With "auto" its grid is ``scale`` times the student's, as far as its native size allows; without a known student it
    is taken to be native.
    """
    if image_size == "auto" and student is not None and student * scale * shape.patch <= shape.native_size:
        return (student * scale) ** 2
    wanted = shape.native_size if isinstance(image_size, str) else image_size
    return max(1, round(wanted / shape.patch)) ** 2


class FileCounts:
    """Counts the images or clips below folders, keeps what it found for a while, and gives up on what takes long."""

    MOST, SECONDS, KEPT = 1_000_000, 2.0, 60.0

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._found: dict[tuple[str, str], tuple[float, int | None]] = {}

    def __call__(self, entries: Iterable[DatasetEntry]) -> dict[str, int | None]:
        """The number of files of each ``instance_data_dir``; None for what can't be counted."""
        counts: dict[str, int | None] = {}
        for entry in entries:
            key = (entry.instance_data_dir, entry.dataset_type)
            known = self._found.get(key)
            if known is None or known[0] < time.monotonic() - self.KEPT:
                known = self._found[key] = (time.monotonic(), self._count(*key))
            counts[entry.instance_data_dir] = known[1]
        return counts

    def _count(self, folder: str, kind: str) -> int | None:
        suffixes = VIDEO_SUFFIXES if kind == "video" else IMAGE_SUFFIXES
        try:
            path = inside(folder, self._roots)
        except Refused:
            return None
        if not path.is_dir():
            return None
        end, count = time.monotonic() + self.SECONDS, 0
        for _, _, names in os.walk(path):
            count += sum(Path(name).suffix.lower() in suffixes for name in names)
            if count > self.MOST or time.monotonic() > end:
                return None
        return count


def entries_for_estimate(values: Iterable[Mapping[str, Any]]) -> list[DatasetEntry]:
    """The data sets of a list as far as they are valid."""
    return [build(DatasetEntry, dict(value))[0] for value in values]
