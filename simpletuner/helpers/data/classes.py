"""What a data set with captions from classes reads: the list of its images (CSV) and the names of classes (JSON)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from simpletuner.configuration.json_files import parse_json
from simpletuner.helpers.data.errors import DatasetError

SAMPLE, CLASSES = "`simpletuner imagenet sample`", "`simpletuner imagenet classes`"


@dataclass(frozen=True)
class ListedImage:
    """A row of the list.

    ``img_path`` is relative to the data set's ``instance_data_dir``, with slashes. ``class_id`` counts the classes,
    sorted by ``synset``, from 0.
    """

    id: str
    img_path: str
    class_id: int
    synset: str


COLUMNS = tuple(column.name for column in fields(ListedImage))


def read_image_list(path: Path) -> Iterator[tuple[int, ListedImage]]:
    """The rows with the number of their line; other columns are ignored, and so are empty lines.

    Raises ``DatasetError`` that names the file, the line and the mend: for a file or header that isn't such a list, a
    row that is broken or leads out of the folder, and a path that comes twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"{path}, line 1: the header lacks {', '.join(missing)}. A list of images begins with "
                    f"{','.join(COLUMNS)}; {SAMPLE} writes one."
                )
            lines: dict[str, int] = {}
            for row in rows:
                image = _image(row, f"{path}, line {rows.line_num}")
                first = lines.setdefault(image.img_path, rows.line_num)
                if first != rows.line_num:
                    raise DatasetError(
                        f"{path}, line {rows.line_num}: {image.img_path!r} is there already, in line {first}. Remove "
                        "one of them; to see images more often, set repeats."
                    )
                yield rows.line_num, image
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"metadata_file {path} can't be read: {error}. Mend it; {SAMPLE} writes one.") from error


def _image(row: Mapping[str | None, str | None], where: str) -> ListedImage:
    values = {column: row[column] or "" for column in COLUMNS}
    empty = [column for column, value in values.items() if not value.strip()]
    if empty or None in row:
        fault = f"{', '.join(empty)} is empty" if empty else "there are more values than columns"
        raise DatasetError(f"{where}: {fault}. Mend or remove the line.")
    img_path = PurePosixPath(values["img_path"])
    if img_path.is_absolute() or ".." in img_path.parts:
        raise DatasetError(
            f"{where}: img_path is {str(img_path)!r}, but paths must be relative to instance_data_dir and stay in it. "
            "Write it so."
        )
    if not values["class_id"].strip().isdecimal():
        raise DatasetError(f"{where}: class_id is {values['class_id']!r}, no whole number. Mend or remove the line.")
    return ListedImage(values["id"], str(img_path), int(values["class_id"]), values["synset"].strip())


def read_class_names(path: Path) -> dict[str, str]:
    """Names of classes by synset, in the order of the synsets. Raises ``DatasetError`` that names the file."""
    try:
        return names_by_synset(parse_json(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError) as error:
        raise DatasetError(f"class_names {path} can't be used: {error}. {CLASSES} writes such a file.") from error


def names_by_synset(content: object, synsets: Sequence[str] = ()) -> dict[str, str]:
    """Names by synset, sorted by it, from what a JSON file of class names holds.

    Args:
        content: ``{"n01440764": "tench", ...}``; ``{"0": ["n01440764", "tench"], ...}``, as Keras has it; or names
            alone, in the order of their synsets: ``["tench", ...]`` or ``{"0": "tench", ...}``.
        synsets: of all classes, in order, for names alone.

    Raises:
        ValueError: it has none of these forms, or there are more or fewer names than synsets.
    """
    names = _keyed_names(content)
    if names is None:
        listed = _listed_names(content)
        if listed is None or not listed:
            raise ValueError(
                'it holds no names of classes; write {"n01440764": "tench", ...}, {"0": ["n01440764", "tench"], ...} '
                'or ["tench", ...]'
            )
        if len(listed) != len(synsets):
            there = f"there are {len(synsets)} synsets" if synsets else "no synsets are given"
            raise ValueError(f"it holds {len(listed)} names without synsets, and {there}")
        names = dict(zip(synsets, listed, strict=True))
    nameless = [synset for synset, name in names.items() if not name.strip()]
    if nameless:
        raise ValueError(f"the name of {nameless[0]} is empty")
    return {synset: names[synset].strip() for synset in sorted(names)}


def _keyed_names(content: object) -> dict[str, str] | None:
    """Names that have their synsets; None where ``content`` is something else."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(name, str) for name in content.values()):
        return None if all(key.isdecimal() for key in content) else dict(content)
    pairs = list(content.values())
    if all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair) for pair in pairs):
        return dict(pairs)
    return None


def _listed_names(content: object) -> list[str] | None:
    """Names in the order of their classes; None where ``content`` is something else."""
    if isinstance(content, dict) and all(key.isdecimal() for key in content):
        numbers = {int(key): name for key, name in content.items()}
        content = (
            [numbers[number] for number in range(len(numbers))] if set(numbers) == set(range(len(numbers))) else None
        )
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    return None
