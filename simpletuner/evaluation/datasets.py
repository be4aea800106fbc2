"""Small labelled image sets for the demo and the benchmark, split once and written out as folders of PNGs by class.

Three splits that share no image: `train` for the diffusion model, `held_out` as the reference of every measurement,
`classifier` for the network whose features measure samples, so that the judge has never seen what it judges by.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from simpletuner.helpers.data.errors import MediaError
from simpletuner.helpers.data.media import IMAGE_SUFFIXES, read_image

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FASHION_NAMES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FEWEST_OF_A_CLASS = 4  # so that each of three splits has one, and training two


@dataclass(frozen=True)
class LabelledImages:
    """Images `(n, C, H, W)` as float in [0, 1] with labels `(n,)`, integers that index `names`."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != (len(self.images),):
            raise ValueError(f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)} do not agree")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.names):
            raise ValueError(f"labels reach {int(self.labels.max())}, but there are {len(self.names)} class names")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor) -> LabelledImages:
        """The images at `indices`, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices], self.names)

    def spread(self, count: int) -> LabelledImages:
        """At most `count` images, evenly spaced: of images that are sorted by class, every class has its share."""
        count = min(count, len(self))
        return self.select(torch.arange(count) * len(self) // max(1, count))


@dataclass(frozen=True)
class Splits:
    """Disjoint sets of one data set."""

    train: LabelledImages
    held_out: LabelledImages
    classifier: LabelledImages


def split(data: LabelledImages, *, train: int, held_out: int, classifier: int, seed: int = 0) -> Splits:
    """Draws three disjoint sets, each with the class shares of the whole (to within one image a class).

    Raises:
        ValueError: fewer images than asked for.
    """
    asked = train + held_out + classifier
    if min(train, held_out, classifier) < 1 or asked > len(data):
        raise ValueError(
            f"train {train} + held_out {held_out} + classifier {classifier} images were asked for; each must be at "
            f"least 1 and the sum at most {len(data)}, the number there is"
        )
    order = _interleave_classes(data.labels, seed)
    parts = order[:asked].split([train, held_out, classifier])
    return Splits(*(data.select(part) for part in parts))


def load_digits(size: int = 28) -> LabelledImages:
    """scikit-learn's 1797 handwritten digits, which come with the package, scaled from 8² to `size`²; one channel."""
    from sklearn.datasets import load_digits as load

    source = load()
    images = torch.as_tensor(source.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return LabelledImages(images, torch.as_tensor(source.target, dtype=torch.long), DIGIT_NAMES)


def digits_splits(seed: int = 0) -> Splits:
    """900 digits to train on, 447 held out, 450 for the classifier."""
    return split(load_digits(), train=900, held_out=447, classifier=450, seed=seed)


def load_fashion_mnist(folder: Path = FASHION_MNIST_FOLDER, *, part: str = "train") -> LabelledImages:
    """Fashion-MNIST (arXiv 1708.07747) from its IDX files, plain or gzipped: 28² pixels, one channel.

    Args:
        folder: holds `train-images-idx3-ubyte.gz` and the like.
        part: "train" (60 000 images) or "t10k" (10 000).

    Raises:
        FileNotFoundError: a file is not there; says where to get it.
        ValueError: a file is not an IDX file or is cut short.
    """
    images = torch.from_numpy(_read_idx(_idx_file(folder, f"{part}-images-idx3-ubyte"), dimensions=3))
    labels = torch.from_numpy(_read_idx(_idx_file(folder, f"{part}-labels-idx1-ubyte"), dimensions=1))
    return LabelledImages(images[:, None].float() / 255, labels.long(), FASHION_NAMES)


def fashion_splits(
    folder: Path = FASHION_MNIST_FOLDER, *, train: int = 5_000, classifier: int = 20_000, seed: int = 0
) -> Splits:
    """`train` and `classifier` images from the training files, and all 10 000 test images held out."""
    source = load_fashion_mnist(folder, part="train")
    if train + classifier > len(source):
        raise ValueError(f"train {train} + classifier {classifier} images exceed the {len(source)} there are")
    order = _interleave_classes(source.labels, seed)
    held_out = load_fashion_mnist(folder, part="t10k")
    return Splits(source.select(order[:train]), held_out, source.select(order[len(order) - classifier :]))


def write_class_folders(data: LabelledImages, folder: Path) -> Path:
    """Writes `folder/<class name>/<index>.png`, 8 bits a channel, and returns `folder`.

    `index` is the image's position in `data`.
    """
    for name in data.names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    pixels = (data.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for index, (array, label) in enumerate(zip(pixels, data.labels.tolist(), strict=True)):
        image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        image.save(folder / data.names[label] / f"{index:05d}.png")
    return folder


def read_class_folders(folder: Path, *, size: int, channels: int = 1) -> LabelledImages:
    """Reads the images `folder/<class name>/*`: the shorter side scaled to `size`, then the centre square.

    Classes are the sorted folder names; files are read in sorted order, those with a number in that order. Folders
    without an image are left out, and so is what begins with a dot.

    Args:
        size: side of the square images, in pixels.
        channels: 1 (luminance) or 3 (RGB).

    Raises:
        FileNotFoundError: no class folder with an image.
        ValueError: an image cannot be read, or channels is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels: {channels}; choose 1 (luminance) or 3 (RGB)")
    files = {
        child.name: sorted(filter(_is_image, child.iterdir()), key=_natural)
        for child in (sorted(folder.iterdir(), key=_caption) if folder.is_dir() else ())
        if child.is_dir() and not child.name.startswith(".")
    }
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        raise FileNotFoundError(
            f"{folder}: no images found; it must hold one folder a class, each with files such as .png, .jpg or .webp"
        )
    images = [_read_image(path, size, channels) for paths in files.values() for path in paths]
    labels = [label for label, paths in enumerate(files.values()) for _ in paths]
    return LabelledImages(torch.stack(images), torch.tensor(labels), tuple(files))


def folder_splits(folder: Path, *, size: int, channels: int = 1, seed: int = 0) -> Splits:
    """A folder of one's own: of every class a quarter held out, a quarter for the classifier, the rest to train on.

    Quarters are rounded down and never empty.

    See `read_class_folders` for its layout and for what is raised.

    Raises:
        ValueError: a class has fewer than 4 images.
    """
    data = read_class_folders(folder, size=size, channels=channels)
    order = _interleave_classes(data.labels, seed)
    parts: list[list[Tensor]] = [[], [], []]
    for label, name in enumerate(data.names):
        members = order[data.labels[order] == label]
        if len(members) < FEWEST_OF_A_CLASS:
            raise ValueError(
                f"{folder / name}: a class needs at least {FEWEST_OF_A_CLASS} images, and this one has "
                f"{len(members)}; add images, or remove the folder"
            )
        quarter = len(members) // 4
        for part, chosen in zip(parts, members.split([len(members) - 2 * quarter, quarter, quarter]), strict=True):
            part.append(chosen)
    return Splits(*(data.select(torch.cat(part)) for part in parts))


def _interleave_classes(labels: Tensor, seed: int) -> Tensor:
    """A random order in which every prefix and every slice holds the classes in their shares of the whole."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        position[members] = (torch.arange(len(members), dtype=torch.float64) + offset) / len(members)
    return position.argsort(stable=True)


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder / name}[.gz] is missing; install Debian's package dataset-fashion-mnist, or name a folder with the "
        "four files of Fashion-MNIST"
    )


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """An IDX file: two zero bytes, type 8 (unsigned byte), the number of dimensions, big-endian sizes, the bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: is no whole gzip file ({error}); fetch it again") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise ValueError(f"{path}: is no IDX file of unsigned bytes with {dimensions} dimensions")
    shape = tuple(int(side) for side in np.frombuffer(content, ">i4", count=dimensions, offset=4))
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(f"{path}: {len(content) - start} bytes of data for the shape {shape}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _read_image(path: Path, size: int, channels: int) -> Tensor:
    try:
        image = read_image(path).convert("L" if channels == 1 else "RGB")
    except MediaError as error:
        raise ValueError(f"{error}; mend or remove it") from error
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BICUBIC)  # antialiased when shrinking
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(size, size, channels)).permute(2, 0, 1).contiguous()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _caption(folder: Path) -> str:
    """The class as a caption, by which the model's classes are ordered: underscores are spaces."""
    return folder.name.replace("_", " ")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts `img_2` before `img_10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
