"""Captions: from a text file, the file name, ``metadata.jsonl``, one prompt, the folder name, or a list of classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from simpletuner.configuration.dataset import CLASS_FIELD, DatasetEntry, entry_file
from simpletuner.helpers.data.classes import CLASSES, read_class_names, read_image_list
from simpletuner.helpers.data.errors import DatasetError, MediaError

Captioner = Callable[[Path], str | None]
"""Gives a file's caption, or None where there is none. Raises ``MediaError`` for a caption that can't be read."""


def captioner(entry: DatasetEntry, folder: Path) -> Captioner:
    """The way in which the files of ``folder`` are captioned. Raises ``DatasetError``."""
    match entry.caption_strategy:
        case "textfile":
            return _text_beside
        case "filename":
            return lambda path: _words(path.stem)
        case "folder":
            return lambda path: _words(path.parent.name)
        case "instanceprompt":
            return lambda path: entry.instance_prompt
        case "metadata":
            return partial(_listed, read_metadata(folder / entry.metadata_file))
        case "class":
            return partial(_listed, class_captions(entry, folder))


def caption_source(entry: DatasetEntry, path: Path) -> Path:
    """The file in which the caption of ``path`` is looked for; ``path`` itself where there is no other."""
    return path.with_suffix(".txt") if entry.caption_strategy == "textfile" else path


def class_captions(entry: DatasetEntry, folder: Path) -> dict[Path, str]:
    """Captions of the files that ``metadata_file`` lists, made of ``caption_template`` and ``class_names``.

    Raises ``DatasetError`` that names the file and the line.
    """
    assert entry.class_names is not None  # as the checks of the configuration have it
    listing = entry_file(entry, entry.metadata_file)
    names = read_class_names(entry_file(entry, entry.class_names))
    captions = {synset: entry.caption_template.replace(CLASS_FIELD, name) for synset, name in names.items()}
    found: dict[Path, str] = {}
    for line, image in read_image_list(listing):
        if image.synset not in captions:
            raise DatasetError(
                f"{listing}, line {line}: class_names ({entry.class_names}) has no name of the class {image.synset!r}. "
                f"Add it there, or remove the line; {CLASSES} writes the names of all classes."
            )
        found[folder / image.img_path] = captions[image.synset]
    return found


def read_metadata(path: Path) -> dict[Path, str]:
    """Captions by file from lines of ``{"file_name": ..., "text" or "caption": ...}``; names are relative to ``path``.

    Raises ``DatasetError`` that names the line.
    """
    try:
        # Not splitlines, which also breaks at characters that a JSON text may hold, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"metadata_file {path} can't be read: {error}. Mend it, or use another caption_strategy."
        ) from error
    rows = (_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    return dict(rows)


def _row(path: Path, number: int, line: str) -> tuple[Path, str]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {number}: not JSON ({error}). Mend or remove the line.") from error
    name = row.get("file_name") if isinstance(row, dict) else None
    text = row.get("text", row.get("caption", "")) if isinstance(row, dict) else None
    if not isinstance(name, str) or not isinstance(text, str):
        raise DatasetError(f'{path}, line {number}: needs "file_name" and "text" (or "caption") as strings.')
    return path.parent / name, text.strip()


def _text_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        return beside.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(beside, f"caption can't be read: {error}") from error


def _listed(captions: dict[Path, str], path: Path) -> str | None:
    return captions.get(path)


def _words(name: str) -> str:
    return name.replace("_", " ").strip()
