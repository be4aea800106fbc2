"""Lists of images and names of classes, as a data set reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner.helpers.data.classes import ListedImage, names_by_synset, read_class_names, read_image_list
from simpletuner.helpers.data.errors import DatasetError

HEADER = "id,img_path,class_id,synset"


def listed(folder: Path, *lines: str) -> list[tuple[int, ListedImage]]:
    path = folder / "list.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return list(read_image_list(path))


def test_rows_with_their_lines(tmp_path: Path) -> None:
    rows = listed(tmp_path, HEADER, "a,n1/a.JPEG,0,n1", "", '"b","n2/b, c.JPEG",1,n2 ')
    assert rows == [(2, ListedImage("a", "n1/a.JPEG", 0, "n1")), (4, ListedImage("b", "n2/b, c.JPEG", 1, "n2"))]


def test_columns_may_stand_otherwise_and_there_may_be_more(tmp_path: Path) -> None:
    ((_, image),) = listed(tmp_path, "\ufeffsynset,width,img_path,id,class_id", "n1,500,a.JPEG,a,3")
    assert image == ListedImage("a", "a.JPEG", 3, "n1")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["path,label", "a.JPEG,0"],
            r"list\.csv, line 1: the header lacks id, img_path, class_id, synset.*imagenet sample",
        ),
        ([], "line 1: the header lacks id"),
        ([HEADER, "a,a.JPEG,0"], "line 2: synset is empty. Mend or remove the line"),
        ([HEADER, "a,,0,"], "line 2: img_path, synset is empty"),
        ([HEADER, "a,a.JPEG,0,n1,more"], "line 2: there are more values than columns"),
        ([HEADER, "a,/data/a.JPEG,0,n1"], "line 2: img_path is '/data/a.JPEG', but paths must be relative"),
        ([HEADER, "a,n1/../../a.JPEG,0,n1"], "must be relative to instance_data_dir and stay in it"),
        ([HEADER, "a,a.JPEG,first,n1"], "line 2: class_id is 'first', no whole number"),
        ([HEADER, "a,a.JPEG,0,n1", "b,./a.JPEG,0,n1"], "line 3: 'a.JPEG' is there already, in line 2"),
        ([HEADER, 'a,"a.JPEG,0,n1'], "can't be read: unexpected end of data"),
    ],
)
def test_broken_lists_name_the_line_and_the_mend(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        listed(tmp_path, *lines)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"metadata_file .*gone\.csv can't be read"):
        list(read_image_list(tmp_path / "gone.csv"))
    (tmp_path / "latin.csv").write_bytes(f"{HEADER}\na,café.JPEG,0,n1".encode("latin-1"))
    with pytest.raises(DatasetError, match="can't be read"):
        list(read_image_list(tmp_path / "latin.csv"))


@pytest.mark.parametrize(
    "content",
    [
        {"n2": "shark", "n1": " tench "},
        {"1": ["n2", "shark"], "0": ["n1", "tench"]},
        ["tench", "shark"],
        {"1": "shark", "0": "tench"},
    ],
)
def test_the_usual_forms_of_names(content: object) -> None:
    names = names_by_synset(content, ["n1", "n2"])
    assert list(names.items()) == [("n1", "tench"), ("n2", "shark")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "holds no names"),
        ([], "holds no names"),
        ("tench", "holds no names"),
        ({"n1": 1}, "holds no names"),
        ({"0": ["n1", "a", "b"]}, "holds no names"),
        ({"1": "tench", "2": "shark"}, "holds no names"),
        (["tench"], "1 names without synsets, and there are 2 synsets"),
        ({"n1": "tench", "n2": " "}, "the name of n2 is empty"),
    ],
)
def test_other_forms_are_refused(content: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        names_by_synset(content, ["n1", "n2"])


def test_names_without_synsets_are_no_table_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(["tench", "shark"]))
    with pytest.raises(
        DatasetError, match=r"names\.json can't be used: it holds 2 names without synsets.*imagenet classes"
    ):
        read_class_names(path)
    path.write_text("{")
    with pytest.raises(DatasetError, match="class_names"):
        read_class_names(path)
