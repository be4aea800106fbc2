"""Images and clips of every kind become upright RGB in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simpletuner.helpers.data.buckets import Bucket, place
from simpletuner.helpers.data.errors import MediaError
from simpletuner.helpers.data.media import load_pixels, measure
from tests.helpers.data.files import numbered_frames, picture, write_clip


def load_whole(path: Path, width: int, height: int) -> Tensor:
    bucket = Bucket(width, height)
    return load_pixels(path, bucket, place(width, height, bucket, crop=True))


def two_halves() -> Image.Image:
    """32 × 16: the left half black, the right half white."""
    values = np.zeros((16, 32, 3), np.uint8)
    values[:, 16:] = 255
    return Image.fromarray(values)


def test_unscaled_pixels_are_exact(tmp_path: Path) -> None:
    image = picture(32, 16)
    image.save(tmp_path / "a.png")
    pixels = load_whole(tmp_path / "a.png", 32, 16)
    assert pixels.shape == (1, 3, 16, 32)
    assert torch.equal((pixels[0] * 255).round(), torch.tensor(np.array(image)).permute(2, 0, 1).float())


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: left becomes top
    two_halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert measure(tmp_path / "a.jpg", 1) == (16, 32, 1)
    pixels = load_whole(tmp_path / "a.jpg", 16, 32)
    assert pixels[..., :12, :].max() < 0.1
    assert pixels[..., 20:, :].min() > 0.9


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    two_halves().convert(mode).save(path)
    pixels = load_whole(path, 32, 16)
    assert pixels.shape == (1, 3, 16, 32)
    assert pixels[..., :12].max() < 0.05
    assert pixels[..., 20:].min() > 0.95


@pytest.mark.parametrize(("dtype", "full"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, dtype: type, full: int) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((16, 32), full * 0.4).astype(dtype)).save(path)
    assert load_whole(path, 32, 16) == pytest.approx(0.4, abs=0.003)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.int32, 70_000), (np.float32, 255), (np.float32, -3), (np.float32, np.nan)]
)
def test_deep_grey_of_unknown_scale_is_an_error(tmp_path: Path, dtype: type, value: float) -> None:
    """It would be white, or black, all over."""
    values = np.zeros((16, 32), dtype)
    values[3, 5] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match=r"a\.tif: has values from .* save it with 8 bits"):
        measure(tmp_path / "a.tif", 1)


def test_picture_of_another_size_is_an_error(tmp_path: Path) -> None:
    """Its crop was reckoned for the size that it had."""
    picture(32, 16).save(tmp_path / "a.png")
    bucket = Bucket(16, 16)
    with pytest.raises(MediaError, match=r"a\.png: has 32×16 pixels now, not 16×16"):
        load_pixels(tmp_path / "a.png", bucket, place(16, 16, bucket, crop=True), size=(16, 16))


def test_transparent_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 16), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_whole(tmp_path / "a.png", 32, 16).min() == 1


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    """Mistake 18: a fine checkerboard becomes grey, not stripes."""
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    bucket = Bucket(16, 16)
    pixels = load_pixels(tmp_path / "a.png", bucket, place(128, 128, bucket, crop=True))
    assert (pixels - 0.5).abs().max() < 0.05


def test_crop_is_the_centre(tmp_path: Path) -> None:
    values = np.zeros((16, 48, 3), np.uint8)
    values[:, 16:32] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    bucket = Bucket(16, 16)
    assert load_pixels(tmp_path / "a.png", bucket, place(48, 16, bucket, crop=True)).min() > 0.99


def test_truncated_image_is_found(tmp_path: Path) -> None:
    picture(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"a\.png: .*truncated"):
        measure(tmp_path / "a.png", 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.mp4"])
def test_garbage_is_a_media_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no picture at all")
    with pytest.raises(MediaError, match=name):
        measure(tmp_path / name, 1)


def test_clip_frames_with_stride(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", numbered_frames(9))
    assert measure(path, 9) == (32, 16, 9)
    assert measure(path, 5) == (32, 16, 5)
    bucket = Bucket(32, 16, 5)
    placement = place(32, 16, bucket, crop=True)
    clip = load_pixels(path, bucket, placement, stride=2)
    assert clip.shape == (5, 3, 16, 32)
    assert (clip.mean((1, 2, 3)) * 255).tolist() == pytest.approx([0, 20, 40, 60, 80], abs=1)
    some = load_pixels(path, bucket, placement, stride=2, frames=[0, 3])
    assert torch.equal(some, clip[[0, 3]])


def test_clip_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", numbered_frames(4))
    bucket = Bucket(32, 16, 5)
    with pytest.raises(MediaError, match="only 4 of the 5 frames"):
        load_pixels(path, bucket, place(32, 16, bucket, crop=True))


def test_turned_clip_is_upright(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [np.array(two_halves())] * 2, rotation=90)
    assert measure(path, 1) == (16, 32, 1)
    bucket = Bucket(16, 32)
    pixels = load_pixels(path, bucket, place(16, 32, bucket, crop=True))
    assert pixels[..., :12, :].min() > 0.9  # counter-clockwise: right becomes top
    assert pixels[..., 20:, :].max() < 0.1
