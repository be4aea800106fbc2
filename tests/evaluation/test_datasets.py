"""Splits share no image, keep the class shares, and survive the way through PNG folders."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpletuner.evaluation.datasets import (
    LabelledImages,
    digits_splits,
    fashion_splits,
    folder_splits,
    load_digits,
    load_fashion_mnist,
    read_class_folders,
    split,
    write_class_folders,
)


def numbered_images(count: int, classes: int, side: int = 4) -> LabelledImages:
    """Image i holds the number i in 8-bit steps, so that it can be told from the others after PNG."""
    values = torch.arange(count, dtype=torch.float32) / 255
    images = values[:, None, None, None].expand(count, 1, side, side).clone()
    labels = torch.arange(count) * classes // count
    return LabelledImages(images, labels, tuple(f"class {i}" for i in range(classes)))


def write_idx(path: Path, array: np.ndarray, *, compressed: bool = True) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if compressed else content)


def fashion_folder(folder: Path, *, train: int = 60, test: int = 20, compressed: bool = True) -> Path:
    generator = np.random.default_rng(0)
    suffix = ".gz" if compressed else ""
    for part, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images, compressed=compressed)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels, compressed=compressed)
    return folder


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 6))
def test_splits_are_disjoint_and_keep_class_shares(seed: int, classes: int) -> None:
    data = numbered_images(120, classes)
    splits = split(data, train=60, held_out=36, classifier=24, seed=seed)
    numbers = torch.cat([part.images[:, 0, 0, 0] for part in (splits.train, splits.held_out, splits.classifier)])
    assert len(numbers.unique()) == 120
    for part in (splits.train, splits.held_out, splits.classifier):
        share = part.labels.bincount(minlength=classes) / len(part)
        assert (share - 1 / classes).abs().max() * len(part) <= 2


def test_split_depends_on_the_seed_alone() -> None:
    data = numbered_images(100, 4)
    one, same, other = (split(data, train=50, held_out=25, classifier=25, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.train.images, same.train.images)
    assert not torch.equal(one.train.images, other.train.images)


def test_split_refuses_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="at most 10"):
        split(numbered_images(10, 2), train=8, held_out=2, classifier=1)


def test_labels_and_images_must_agree() -> None:
    with pytest.raises(ValueError, match="do not agree"):
        LabelledImages(torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.long), ("a",))
    with pytest.raises(ValueError, match="class names"):
        LabelledImages(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), ("a",))


def test_digits_come_with_the_package() -> None:
    digits, splits = load_digits(), digits_splits()
    assert digits.images.shape == (1797, 1, 28, 28)
    assert float(digits.images.min()) >= 0 and float(digits.images.max()) <= 1
    assert [len(splits.train), len(splits.held_out), len(splits.classifier)] == [900, 447, 450]
    assert splits.train.names[3] == "three"


@pytest.mark.parametrize("compressed", [True, False])
def test_fashion_mnist_from_its_files(tmp_path: Path, compressed: bool) -> None:
    folder = fashion_folder(tmp_path, compressed=compressed)
    data = load_fashion_mnist(folder)
    assert data.images.shape == (60, 1, 28, 28) and data.labels[:3].tolist() == [0, 1, 2]
    splits = fashion_splits(folder, train=30, classifier=30)
    assert len(splits.held_out) == 20
    both = torch.cat([splits.train.images, splits.classifier.images]).flatten(1)
    assert len(both.unique(dim=0)) == 60


def test_fashion_mnist_says_what_is_wrong_with_its_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)
    folder = fashion_folder(tmp_path)
    with pytest.raises(ValueError, match="exceed the 60"):
        fashion_splits(folder, train=50, classifier=20)
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-1]))
    with pytest.raises(ValueError, match="59 bytes"):
        load_fashion_mnist(folder)
    images = folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:100])
    with pytest.raises(ValueError, match="no whole gzip"):
        load_fashion_mnist(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_class_folders_round_trip(tmp_path: Path, channels: int) -> None:
    data = numbered_images(24, 3)
    data = LabelledImages(data.images.repeat(1, channels, 1, 1), data.labels, data.names)
    read = read_class_folders(write_class_folders(data, tmp_path / "set"), size=4, channels=channels)
    assert read.names == data.names
    assert torch.equal(read.labels, data.labels)
    torch.testing.assert_close(read.images, data.images)


def test_images_are_scaled_and_centre_cropped(tmp_path: Path) -> None:
    """A 32×16 image: its middle square is white, its sides black."""
    array = np.zeros((16, 32), np.uint8)
    array[:, 8:24] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(array).save(tmp_path / "a" / "x.png")
    read = read_class_folders(tmp_path, size=8)
    assert read.images.shape == (1, 1, 8, 8)
    assert float(read.images[0, 0, :, 2:6].min()) > 0.9


def test_files_are_read_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "empty").mkdir()
    for number in (10, 2, 1):
        Image.new("L", (4, 4), number).save(tmp_path / "a" / f"img_{number}.png")
    read = read_class_folders(tmp_path, size=4)
    assert read.names == ("a",)
    assert (read.images[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 10]


def test_folder_errors_name_the_file_and_the_mend(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        read_class_folders(tmp_path / "nowhere", size=8)
    write_class_folders(numbered_images(7, 2), tmp_path)
    with pytest.raises(ValueError, match="class 1: a class needs at least 4 images, and this one has 3; add images"):
        folder_splits(tmp_path, size=4)
    with pytest.raises(ValueError, match="channels: 2"):
        read_class_folders(tmp_path, size=4, channels=2)
    (tmp_path / "class 0" / "torn.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"torn\.png: is no image, or a damaged one; mend or remove it"):
        read_class_folders(tmp_path, size=4)


def test_images_are_read_as_for_training(tmp_path: Path) -> None:
    """Upright, deep ones scaled, transparent ones on white; what begins with a dot is none."""
    (tmp_path / "a").mkdir()
    (tmp_path / ".cache").mkdir()
    halves = np.zeros((8, 8), np.uint8)
    halves[:, 4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: left becomes top
    Image.fromarray(halves).save(tmp_path / "a" / "1.png", exif=exif)
    Image.fromarray(np.full((8, 8), 16384, np.uint16)).save(tmp_path / "a" / "2.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a" / "3.png")
    for name in ("a/._1.png", ".cache/1.png"):
        (tmp_path / name).write_bytes(b"not an image")
    read = read_class_folders(tmp_path, size=8)
    assert read.names == ("a",) and len(read) == 3
    assert float(read.images[0, 0, :3].max()) < 0.1 < 0.9 < float(read.images[0, 0, 5:].min())
    assert float(read.images[1].mean()) == pytest.approx(0.25, abs=0.01)
    assert float(read.images[2].min()) == 1


def test_rare_classes_are_in_every_split(tmp_path: Path) -> None:
    labels = torch.tensor(200 * [0] + 4 * [1] + 7 * [2])
    images = (torch.arange(211) / 255)[:, None, None, None].expand(-1, 1, 4, 4)
    splits = folder_splits(write_class_folders(LabelledImages(images, labels, ("x", "y", "z")), tmp_path), size=4)
    assert splits.train.labels.bincount().tolist() == [100, 2, 5]
    assert splits.held_out.labels.bincount().tolist() == splits.classifier.labels.bincount().tolist() == [50, 1, 1]
    parts = (splits.train, splits.held_out, splits.classifier)
    assert len(torch.cat([part.images[:, 0, 0, 0] for part in parts]).unique()) == 211


def test_folder_splits_use_every_image(tmp_path: Path) -> None:
    splits = folder_splits(write_class_folders(numbered_images(64, 2), tmp_path), size=4)
    assert [len(splits.train), len(splits.held_out), len(splits.classifier)] == [32, 16, 16]


@given(count=st.integers(0, 60), asked=st.integers(0, 80))
def test_spread_takes_each_at_most_once_in_order(count: int, asked: int) -> None:
    chosen = numbered_images(count, 1).spread(asked) if count else numbered_images(1, 1).spread(0)
    values = (chosen.images[:, 0, 0, 0] * 255).round().tolist()
    assert len(values) == min(count, asked)
    assert values == sorted(set(values))


def test_spread_keeps_the_shares_of_sorted_classes() -> None:
    assert numbered_images(60, 3).spread(12).labels.bincount().tolist() == [4, 4, 4]
