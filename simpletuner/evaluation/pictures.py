"""Images to be measured: generated files, the training's own images, a folder of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simpletuner.helpers.data.buckets import Bucket, place
from simpletuner.helpers.data.errors import DatasetError, MediaError
from simpletuner.helpers.data.media import IMAGE_SUFFIXES, read_image
from simpletuner.helpers.data.parallel import ordered_map
from simpletuner.helpers.data.samples import Sample


@dataclass(frozen=True)
class Picture:
    """One image: all that decides its pixels, as JSON has it; its width and height; and what reads it.

    `read` gives `(3, H, W)`, uint8.
    """

    key: tuple[object, ...]
    size: tuple[int, int]
    read: Callable[[], Tensor]


def originals(samples: Sequence[Sample]) -> list[Sample]:
    """The samples without their mirror images: what the data is, and not what it is stretched to."""
    return [sample for sample in samples if not sample.mirrored]


def training_pictures(samples: Sequence[Sample]) -> list[Picture]:
    """The training's own images, cut as they are trained."""
    return [
        Picture(sample.cut, (sample.bucket.width, sample.bucket.height), partial(_trained, sample))
        for sample in originals(samples)
    ]


def folder_pictures(folder: Path, size: tuple[int, int]) -> list[Picture]:
    """All images below a folder, the largest centre of each brought to `size`, width and height.

    Raises:
        ValueError: it holds fewer than two.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if len(paths) < 2:
        raise ValueError(
            f"evaluation_reference: {str(folder)!r} holds {'one image' if paths else 'no image'}, and at least 2 are "
            "needed. Name another folder, or remove the option to compare with the training's own images."
        )
    states = ((path, path.stat()) for path in paths)
    return [
        Picture(
            (path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns, size),
            size,
            partial(_centre, path, size),
        )
        for path, state in states
    ]


def file_pictures(files: Sequence[Path]) -> list[Picture]:
    """Image files as they are."""

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            return image.size

    return [Picture((str(path),), size(path), partial(_whole, path)) for path in files]


def commonest_size(samples: Sequence[Sample]) -> tuple[int, int]:
    """Width and height that most samples have."""
    return Counter((sample.bucket.width, sample.bucket.height) for sample in samples).most_common(1)[0][0]


def batches_of(pictures: Sequence[Picture], batch_size: int, workers: int) -> Iterator[tuple[list[int], Tensor]]:
    """Batches `(b, 3, H, W)`, uint8, of one size each, with the indices of their pictures; read by threads."""

    def read(indices: list[int]) -> tuple[list[int], Tensor]:
        return indices, torch.stack([pictures[index].read() for index in indices])

    return ordered_map(read, grouped([picture.size for picture in pictures], batch_size), workers)


def grouped(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """The indices of `sizes` in batches of one size each, every index once."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    return [
        indices[first : first + batch_size]
        for indices in by_size.values()
        for first in range(0, len(indices), batch_size)
    ]


def _trained(sample: Sample) -> Tensor:
    return (sample.pixels([0])[0] * 255).round().to(torch.uint8)


def _whole(path: Path) -> Tensor:
    return _to_tensor(read_image(path))


def _centre(path: Path, size: tuple[int, int]) -> Tensor:
    try:
        image = read_image(path)
    except MediaError as error:
        raise DatasetError(f"evaluation_reference: {error}. Mend or remove the file.") from error
    if image.size != size:
        placement = place(*image.size, Bucket(*size), crop=True)
        image = image.resize(size, Image.Resampling.BICUBIC, box=placement.box)
    return _to_tensor(image)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
