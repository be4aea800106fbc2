"""`simpletuner imagenet`: a sample of ImageNet's images as a list, and the names of its classes."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from simpletuner.configuration.json_files import parse_json
from simpletuner.helpers.data.classes import COLUMNS, ListedImage, names_by_synset, read_class_names
from simpletuner.helpers.data.errors import DatasetError, MediaError
from simpletuner.helpers.data.media import measure
from simpletuner.helpers.data.parallel import ordered_map
from simpletuner.helpers.data.progress import CacheProgress

TRAIN = Path("Data", "CLS-LOC", "train")
"""Where ILSVRC has a folder of training images for each class, named by its synset."""
SUFFIXES = frozenset({".jpeg", ".jpg"})
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class ClassSample:
    """What was drawn of one class: the names of files, sorted, and which others can't be read, in words."""

    synset: str
    names: list[str]
    unreadable: list[str]


def class_folders(root: Path) -> list[str]:
    """The synsets of which ``root``, a folder with ILSVRC's layout, has images, sorted. Raises ``DatasetError``."""
    folder = root / TRAIN
    try:
        found = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    except OSError as error:
        raise DatasetError(
            f"--root: {folder} can't be read: {error.strerror}. Name the folder that holds {TRAIN.as_posix()}."
        ) from error
    if not found:
        raise DatasetError(f"--root: {folder} holds no folder of a class. Extract the training images there.")
    return found


def draw_order(names: Iterable[str], synset: str, seed: int) -> list[str]:
    """The files of a class in a random order that depends on the seed, the synset and their names alone.

    Other classes change nothing, nor does any library's way of drawing; and the first 200 of a sample of 500 are the
    sample of 200.
    """

    def lot(name: str) -> bytes:
        return blake2b(os.fsencode(f"{seed}/{synset}/{name}"), digest_size=16).digest()

    return sorted(names, key=lot)


def sample_class(root: Path, synset: str, *, per_class: int, seed: int) -> ClassSample:
    """Draws images of a class, uniformly and without replacement; those that can't be decoded are replaced.

    Raises ``DatasetError`` where there is none.
    """
    folder = root / TRAIN / synset
    try:
        files = [item.name for item in folder.iterdir() if Path(item.name).suffix.lower() in SUFFIXES]
    except OSError as error:
        raise DatasetError(f"--root: {folder} can't be read: {error.strerror}. Check its permissions.") from error
    names: list[str] = []
    unreadable: list[str] = []
    for name in draw_order((name for name in files if not name.startswith(".")), synset, seed):
        if len(names) == per_class:
            break
        try:
            measure(folder / name, 1)
        except MediaError as error:
            unreadable.append(str(error))
        else:
            names.append(name)
    if not names:
        kind = f"none of its {len(unreadable)} JPEG files can be read" if unreadable else "it holds no JPEG file"
        raise DatasetError(f"--root: {folder}: {kind}. Extract the class again, or remove the folder.")
    return ClassSample(synset, sorted(names), unreadable)


def sample_images(
    root: Path,
    *,
    per_class: int,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    workers: int = 0,
    progress: CacheProgress,
) -> list[ListedImage]:
    """Draws images of every class and says what is wrong with the data.

    Args:
        root: the folder that holds ``Data/CLS-LOC/train/{synset}/*.JPEG``. Paths of the list are relative to
            ``train``, which is what a data set names as ``instance_data_dir``.
        per_class: images of each class; one that has fewer is taken whole.
        classes: all synsets, whose order numbers the classes; None takes those that there are images of.

    Returns:
        Rows sorted by class and path, the same for the same seed and files.

    Raises:
        DatasetError: a folder is missing or has no image, or isn't among the ``classes``.
    """
    synsets = class_folders(root)
    numbers = {synset: number for number, synset in enumerate(sorted(synsets if classes is None else classes))}
    unknown = [synset for synset in synsets if synset not in numbers]
    if unknown:
        raise DatasetError(
            f"--class-names: {len(unknown)} of the folders in {root / TRAIN} have no name there: "
            f"{_shortened(unknown)}. Add their names, or remove the folders."
        )
    draw = partial(sample_class, root, per_class=per_class, seed=seed)
    advance = progress.task("Sampling classes", len(synsets), unit="classes")
    drawn = []
    for sample in ordered_map(draw, synsets, workers):
        drawn.append(sample)
        advance(1)
    _tell_faults(drawn, per_class, len(numbers) - len(synsets), progress)
    return [
        ListedImage(Path(name).stem, f"{sample.synset}/{name}", numbers[sample.synset], sample.synset)
        for sample in drawn
        for name in sample.names
    ]


def _tell_faults(drawn: Sequence[ClassSample], per_class: int, absent: int, progress: CacheProgress) -> None:
    unreadable = [fault for sample in drawn for fault in sample.unreadable]
    if unreadable:
        progress.say(f"warning: {len(unreadable)} images can't be read and are skipped: {_shortened(unreadable)}")
    small = [f"{sample.synset} ({len(sample.names)})" for sample in drawn if len(sample.names) < per_class]
    if small:
        progress.say(
            f"warning: {len(small)} classes have fewer than {per_class} images and are taken whole: {_shortened(small)}"
        )
    if absent:
        progress.say(f"warning: {absent} classes that have a name have no folder.")


def image_list(images: Iterable[ListedImage]) -> str:
    """The list as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(image) for image in images)
    return text.getvalue()


def make_class_names(root: Path | None = None, names: Path | None = None) -> dict[str, str]:
    """Names of classes by synset, sorted.

    Args:
        root: as of ``sample_images``; its folders are the synsets of names that come without.
        names: a JSON file of names, in a form that ``names_by_synset`` reads; None takes the 1000 of ImageNet as
            torchvision has them beside its weights.

    Raises:
        DatasetError: there are no synsets, more or fewer than names, or some without a name.
    """
    synsets = [] if root is None else class_folders(root)
    source = "torchvision's table of names" if names is None else f"--names: {names}"
    mend = "Give --root, a folder of ILSVRC with all these classes" + ("." if names else ", or --names.")
    try:
        content = _torchvision_names() if names is None else parse_json(names.read_text(encoding="utf-8-sig"))
        found = names_by_synset(content, synsets)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{source} can't be used: {reason}. {mend}") from error
    nameless = [synset for synset in synsets if synset not in found]
    if nameless:
        raise DatasetError(f"{source} lacks {len(nameless)} classes of --root: {_shortened(nameless)}. Add them.")
    return found


def _torchvision_names() -> list[str]:
    """The names of ImageNet's classes in the order of their synsets; nothing is downloaded."""
    from torchvision.models import ResNet18_Weights  # type: ignore[import-untyped]

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def class_names_file(names: Mapping[str, str]) -> str:
    """The names as JSON, in the order of their classes."""
    return json.dumps(names, indent=2, ensure_ascii=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all. Raises ``DatasetError`` where the disk refuses."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", newline="")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise DatasetError(
            f"--output: {path} can't be written: {error.strerror}. Free space, or name another file."
        ) from error


def run_sample(root: Path, output: Path, *, per_class: int, seed: int, class_names: Path | None, workers: int) -> None:
    """Writes a list of sampled images. Raises ``DatasetError``."""
    classes = None if class_names is None else list(read_class_names(class_names))
    with CacheProgress(enabled=True) as progress:
        images = sample_images(
            root, per_class=per_class, seed=seed, classes=classes, workers=workers, progress=progress
        )
    write_whole(output, image_list(images))
    print(f"{len(images)} images of {len({image.synset for image in images})} classes are listed in {output}.")


def run_class_names(output: Path, *, root: Path | None, names: Path | None) -> None:
    """Writes the table of class names. Raises ``DatasetError``."""
    found = make_class_names(root, names)
    write_whole(output, class_names_file(found))
    print(f"{len(found)} names of classes are in {output}.")


def _shortened(items: Sequence[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return "; ".join(items[:_NAMES_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
