"""Where captions come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.helpers.data.captions import captioner, class_captions, read_metadata
from simpletuner.helpers.data.errors import DatasetError, MediaError
from tests.helpers.data.files import make_entry


def caption(folder: Path, name: str, **changes: Any) -> str | None:
    return captioner(make_entry(folder, **changes), folder)(folder / name)


def test_text_file_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff a café\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    assert caption(tmp_path, "a.png") == "a café"
    assert caption(tmp_path, "b.png") == ""
    assert caption(tmp_path, "c.png") is None


def test_text_file_in_another_encoding_is_that_files_fault(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(MediaError, match=r"a\.txt"):
        caption(tmp_path, "a.png")


def test_file_name_and_folder_name(tmp_path: Path) -> None:
    assert caption(tmp_path, "a_red_car.png", caption_strategy="filename") == "a red car"
    assert caption(tmp_path, "maine_coon/1.png", caption_strategy="folder") == "maine coon"


def test_one_prompt(tmp_path: Path) -> None:
    assert caption(tmp_path, "a.png", caption_strategy="instanceprompt", instance_prompt="a sks dog") == "a sks dog"


def test_metadata_lines(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/b.png", "caption": " two "}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert caption(tmp_path, "a.png", caption_strategy="metadata") == "one"
    assert caption(tmp_path, "sub/b.png", caption_strategy="metadata") == "two"
    assert caption(tmp_path, "c.png", caption_strategy="metadata") is None


def test_only_line_breaks_end_a_line_of_metadata(tmp_path: Path) -> None:
    text = '{"file_name": "a.png", "text": "one\u2028two\x85three"}\r\n{"file_name": "b.png", "text": "x"}\r\n'
    (tmp_path / "metadata.jsonl").write_bytes(text.encode())
    assert caption(tmp_path, "a.png", caption_strategy="metadata") == "one\u2028two\x85three"
    assert caption(tmp_path, "b.png", caption_strategy="metadata") == "x"


@pytest.mark.parametrize("line", ["{", '"text"', '{"text": "no name"}', '{"file_name": "a.png", "text": 1}'])
def test_broken_metadata_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.png", "text": "one"}\n' + line)
    with pytest.raises(DatasetError, match=r"metadata\.jsonl, line 2"):
        read_metadata(path)


def test_missing_metadata_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="metadata_file"):
        caption(tmp_path, "a.png", caption_strategy="metadata")


# Captions from classes

ROWS = "id,img_path,class_id,synset\na,n1/a.JPEG,0,n1\nb,n2/b.JPEG,1,n2\n"
CLASS = {"caption_strategy": "class", "metadata_file": "list.csv", "class_names": "names.json"}


def write_class_files(folder: Path, rows: str = ROWS, names: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_text(rows)
    (folder / "names.json").write_text(json.dumps({"n1": "tench", "n2": "crane bird"} if names is None else names))
    return folder


def test_captions_from_classes(tmp_path: Path) -> None:
    folder = write_class_files(tmp_path)
    entry = make_entry(folder, **CLASS)
    files = class_captions(entry, folder)
    assert files == {folder / "n1/a.JPEG": "a photo of a tench", folder / "n2/b.JPEG": "a photo of a crane bird"}
    assert caption(folder, "n1/a.JPEG", **CLASS) == "a photo of a tench"
    assert caption(folder, "n1/other.JPEG", **CLASS) is None
    assert caption(folder, "n2/b.JPEG", **CLASS, caption_template="{class}, {}") == "crane bird, {}"


def test_class_files_may_lie_where_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the images comes first; it may be one that can't be written."""
    images, here = tmp_path / "images", write_class_files(tmp_path / "here")
    images.mkdir()
    monkeypatch.chdir(here)
    assert caption(images, "n1/a.JPEG", **CLASS) == "a photo of a tench"
    write_class_files(images, names={"n1": "goldfish", "n2": "shark"})
    assert caption(images, "n1/a.JPEG", **CLASS) == "a photo of a goldfish"


def test_class_without_a_name_names_the_line_and_the_mend(tmp_path: Path) -> None:
    folder = write_class_files(tmp_path, names={"n1": "tench"})
    words = r"list\.csv, line 3: class_names \(names\.json\) has no name of the class 'n2'\. Add it there"
    with pytest.raises(DatasetError, match=words):
        caption(folder, "n1/a.JPEG", **CLASS)
