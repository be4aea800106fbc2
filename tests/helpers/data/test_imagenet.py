"""Sampling ImageNet: the same draw everywhere, and faulty files end nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.cli import main
from simpletuner.helpers.data.classes import ListedImage
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.imagenet import TRAIN, draw_order, image_list, make_class_names, sample_images
from simpletuner.helpers.data.progress import CacheProgress
from tests.helpers.data.files import picture


def write_classes(root: Path, **counts: int) -> Path:
    """ILSVRC's layout with so many images of each class."""
    for synset, count in counts.items():
        folder = root / TRAIN / synset
        folder.mkdir(parents=True)
        for number in range(count):
            picture(8, 6, number).save(folder / f"{synset}_{number}.JPEG")
    return root


def sampled(root: Path, per_class: int, seed: int = 0, workers: int = 0, **how: object) -> list[ListedImage]:
    with CacheProgress(enabled=False) as progress:
        return sample_images(root, per_class=per_class, seed=seed, workers=workers, progress=progress, **how)


def of_class(images: list[ListedImage], synset: str) -> list[str]:
    return [image.img_path for image in images if image.synset == synset]


def test_rows_are_drawn_from_each_class(tmp_path: Path) -> None:
    root = write_classes(tmp_path, n02=6, n01=5)
    (root / TRAIN / "n01" / "notes.txt").touch()
    (root / TRAIN / "LOC_train.csv").touch()
    images = sampled(root, 3)
    assert [(image.class_id, image.synset) for image in images] == [(0, "n01")] * 3 + [(1, "n02")] * 3
    assert all(image.img_path == f"{image.synset}/{image.id}.JPEG" for image in images)
    assert len({image.img_path for image in images}) == 6
    assert all((root / TRAIN / image.img_path).is_file() for image in images)
    assert images == sorted(images, key=lambda image: image.img_path)


def test_the_draw_depends_on_seed_and_class_alone(tmp_path: Path) -> None:
    root = write_classes(tmp_path, n01=20, n03=20)
    before = sampled(root, 8)
    assert image_list(sampled(root, 8, workers=3)) == image_list(before)
    assert sampled(root, 8, seed=1) != before
    write_classes(root, n02=20)
    after = sampled(root, 8)
    assert [of_class(after, synset) for synset in ("n01", "n03")] == [of_class(before, s) for s in ("n01", "n03")]
    assert [image.class_id for image in after] == [0] * 8 + [1] * 8 + [2] * 8
    places = [[path.rpartition("_")[2] for path in of_class(after, synset)] for synset in ("n01", "n02", "n03")]
    assert len(set(map(tuple, places))) == 3  # classes are drawn apart


def test_a_larger_sample_holds_the_smaller(tmp_path: Path) -> None:
    root = write_classes(tmp_path, n01=20)
    assert set(sampled(root, 5)) < set(sampled(root, 12)) < set(sampled(root, 20))


@given(st.integers(0, 10**6))
def test_draws_are_permutations(seed: int) -> None:
    names = [f"{number}.JPEG" for number in range(30)]
    assert sorted(draw_order(names, "n1", seed)) == sorted(names)
    assert draw_order(names, "n1", seed) == draw_order(names[::-1], "n1", seed)


def test_draws_are_uniform() -> None:
    """The chance of each of 10 files to be among the first 3, over 4000 seeds: 1200 with a deviation of 29."""
    names = [f"{number}.JPEG" for number in range(10)]
    counts = Counter(name for seed in range(4000) for name in draw_order(names, "n1", seed)[:3])
    assert all(abs(counts[name] - 1200) < 5 * 29 for name in names)


def test_unreadable_images_are_replaced_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "data", n01=10, n02=3)
    first, second = draw_order([f"n01_{number}.JPEG" for number in range(10)], "n01", 0)[:2]
    whole = (root / TRAIN / "n01" / first).read_bytes()
    (root / TRAIN / "n01" / first).write_bytes(whole[: len(whole) // 2])
    (root / TRAIN / "n01" / second).write_bytes(b"")
    output = tmp_path / "list.csv"
    assert main(["imagenet", "sample", "--root", str(root), "--per-class", "4", "--output", str(output)]) == 0
    said = capsys.readouterr()
    assert said.out == f"7 images of 2 classes are listed in {output}.\n"
    assert "warning: 2 images can't be read and are skipped: " in said.err and first in said.err and second in said.err
    assert "warning: 1 classes have fewer than 4 images and are taken whole: n02 (3)" in said.err
    lines = output.read_text().splitlines()
    assert lines[0] == "id,img_path,class_id,synset" and len(lines) == 8
    assert first not in output.read_text() and second not in output.read_text()
    assert sorted(tmp_path.iterdir()) == [root, output]  # and nothing half-written


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", n01=6, n02=6)
    command = ["imagenet", "sample", "--root", str(root), "--per-class", "3", "--seed", "7", "--output"]
    for name in ("one.csv", "two.csv"):
        assert main([*command, str(tmp_path / name)]) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert b"\r" not in (tmp_path / "one.csv").read_bytes()


def test_classes_are_numbered_among_all_that_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "data", n02=2, n04=2)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"n04": "cat", "n01": "tench", "n02": "shark"}))
    command = ["imagenet", "sample", "--root", str(root), "--output", str(tmp_path / "list.csv")]
    assert main([*command, "--class-names", str(names), "--per-class", "2"]) == 0
    assert "warning: 1 classes that have a name have no folder." in capsys.readouterr().err
    rows = (tmp_path / "list.csv").read_text().splitlines()[1:]
    assert [row.split(",")[2:] for row in rows] == [["1", "n02"]] * 2 + [["2", "n04"]] * 2
    names.write_text(json.dumps({"n04": "cat"}))
    assert main([*command, "--class-names", str(names)]) == 2
    assert "--class-names: 1 of the folders" in capsys.readouterr().err


def test_faults_are_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"

    def refused(*more: str, output: Path = tmp_path / "list.csv") -> str:
        assert main(["imagenet", "sample", "--root", str(root), "--output", str(output), *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert not (tmp_path / "list.csv").exists()
        return line

    assert "--root" in refused() and "holds Data/CLS-LOC/train" in refused()
    (root / TRAIN).mkdir(parents=True)
    assert "holds no folder of a class" in refused()
    write_classes(root, n01=2)
    (root / TRAIN / "n02").mkdir()
    assert "n02: it holds no JPEG file. Extract the class again, or remove the folder" in refused()
    (root / TRAIN / "n02" / "a.JPEG").write_bytes(b"broken")
    assert "n02: none of its 1 JPEG files can be read" in refused()
    (root / TRAIN / "n02" / "a.JPEG").unlink()
    (root / TRAIN / "n02").rmdir()
    (tmp_path / "file").touch()
    assert refused(output=tmp_path / "file" / "list.csv").startswith("error: --output: ")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("flags", [["--per-class", "0"], ["--per-class", "many"], ["--seed", "-1"], []])
def test_wrong_command_lines(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["imagenet", "sample", *(["--root", "a", "--output", "b", *flags] if flags else [])])
    assert stopped.value.code == 2


def test_torchvisions_names_belong_to_a_thousand_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synsets = [f"n{number:08}" for number in range(1, 1001)]
    for synset in synsets:
        (tmp_path / TRAIN / synset).mkdir(parents=True)
    names = make_class_names(tmp_path)
    assert list(names) == synsets
    assert (names[synsets[0]], names[synsets[999]]) == ("tench", "toilet tissue")
    assert len(set(names.values())) == 1000
    (tmp_path / TRAIN / synsets[5]).rmdir()
    output = tmp_path / "names.json"
    assert main(["imagenet", "classes", "--output", str(output), "--root", str(tmp_path)]) == 2
    assert "1000 names without synsets, and there are 999 synsets" in capsys.readouterr().err
    assert main(["imagenet", "classes", "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert "no synsets are given. Give --root" in said and not output.exists()


def test_names_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "source.json", tmp_path / "made" / "names.json"
    source.write_text(json.dumps({"0": ["n2", "great white shark"], "1": ["n1", "crème"]}))
    assert main(["imagenet", "classes", "--names", str(source), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"2 names of classes are in {output}.\n"
    assert output.read_text(encoding="utf-8") == '{\n  "n1": "crème",\n  "n2": "great white shark"\n}\n'
    write_classes(tmp_path / "data", n3=1)
    with pytest.raises(DatasetError, match="lacks 1 classes of --root: n3"):
        make_class_names(tmp_path / "data", source)
    with pytest.raises(DatasetError, match=r"--names: .*No such file"):
        make_class_names(names=tmp_path / "gone.json")
