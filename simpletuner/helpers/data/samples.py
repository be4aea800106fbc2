"""One trainable image or clip, and its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from torch import Tensor

from simpletuner.helpers.data.buckets import Bucket, Placement, place
from simpletuner.helpers.data.errors import DatasetError, MediaError
from simpletuner.helpers.data.media import load_pixels

FITTED_SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """One file of a data set, measured and put into a bucket.

    ``id`` is unique (entry and path within its folder); ``digest`` is the hash of the file's content; ``width`` and
    ``height`` are the upright source's pixels. ``bucket.frames`` is the clip's length (1 for images), made of every
    ``frame_stride``-th frame of the file, and ``latent_frames`` what the VAE makes of it. ``mirrored`` ones
    are seen left to right. ``crop`` and ``crop_pct`` are the data set's (see ``place``). ``repeats`` is how many more
    times than once the sample is seen in an epoch.
    """

    id: str
    entry_id: str
    path: Path
    digest: str
    caption: str
    width: int
    height: int
    bucket: Bucket
    latent_frames: int
    latent_folder: Path
    frame_stride: int = 1
    crop: bool = True
    crop_pct: float = 1.0
    mirrored: bool = False
    repeats: int = 0

    @property
    def cut(self) -> tuple[object, ...]:
        """All that decides the sample's pixels, as JSON has it."""
        return self.digest, astuple(self.bucket), astuple(self.placement), self.frame_stride, self.mirrored

    @property
    def placement(self) -> Placement:
        """The part of the source that fills the bucket."""
        return place(self.width, self.height, self.bucket, crop=self.crop, crop_pct=self.crop_pct)

    def pixels(self, frames: Sequence[int] | None = None) -> Tensor:
        """``(T, 3, H, W)`` in [0, 1]: the VAE and the teacher both see exactly this.

        Raises ``DatasetError`` where the file broke, or became one of another size, since it was scanned.
        """
        try:
            size, stride = (self.width, self.height), self.frame_stride
            pixels = load_pixels(self.path, self.bucket, self.placement, size=size, stride=stride, frames=frames)
            return pixels.flip(-1) if self.mirrored else pixels
        except MediaError as error:
            raise DatasetError(
                f"{error}. It could be read when it was scanned: mend or remove it, or start the run again."
            ) from error


def spread_evenly(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples to which what depends on the data is fitted: a teacher's channels, a whitening."""
    return samples[:: max(1, len(samples) // FITTED_SAMPLES)][:FITTED_SAMPLES]
