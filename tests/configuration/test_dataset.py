from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpletuner.configuration import Config
from simpletuner.configuration.dataset import DatasetEntry, check_entries, entry_file, load_dataset_config
from tests.configuration.conftest import TRANSFORMER, VIDEO


def load(folder: Path, *entries: object) -> tuple[list[DatasetEntry], dict[str, str]]:
    path = folder / "data.json"
    path.write_text(json.dumps(list(entries)))
    loaded, problems = load_dataset_config(path)
    return loaded, {problem.option: str(problem) for problem in problems}


def entry(folder: Path, **values: Any) -> dict[str, Any]:
    return {"id": "mine", "instance_data_dir": str(folder), **values}


def test_entries_as_simpletuner_writes_them(tmp_path: Path) -> None:
    embeds = {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache"}
    clips = entry(tmp_path, id="clips", dataset_type="video", video={"num_frames": 17, "min_frames": 9})
    off = {"id": "off", "disabled": True, "instance_data_dir": "/gone"}
    loaded, problems = load(tmp_path, entry(tmp_path, crop_style="center", repeats=2), clips, embeds, off)
    assert [item.id for item in loaded] == ["mine", "clips"]
    assert (loaded[0].repeats, loaded[0].video.num_frames, loaded[1].video.num_frames) == (2, 49, 17)
    assert set(problems) == {"data.json: text.dataset_type"}
    assert all(line.startswith("warning") for line in problems.values())


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"id": ""}, "id", "is not set"),
        ({"instance_data_dir": "/gone"}, "instance_data_dir", "no such folder"),
        ({"instance_data_dir": None}, "instance_data_dir", "is not set"),
        ({"repeats": "2"}, "repeats", "Write it without quotes"),
        ({"repeatz": 2}, "repeatz", 'Did you mean "repeats"?'),
        ({"caption_strategy": "instanceprompt"}, "instance_prompt", "is not set"),
        ({"caption_strategy": "metadata"}, "metadata_file", "no such file"),
        ({"type": "aws"}, "type", "one of: local"),
        ({"crop_style": "random"}, "crop_style", "one of: center"),
        ({"video": {"num_frames": 0}}, "video.num_frames", "at least 1"),
        ({"video": {"framez": 9}}, "video.framez", "is no option"),
        ({"dataset_type": "video", "video": {"min_frames": 50}}, "video.min_frames", "every clip would be left out"),
        ({"resolution": 1024, "resolution_type": "area"}, "resolution", "set resolution_type to pixel"),
        ({"cache_dir_vae": ""}, "cache_dir_vae", "is empty"),
        ({"cache_dir_vae": __file__}, "cache_dir_vae", "is a file"),
        ({"instance_data_dir": 300 * "x"}, "instance_data_dir", "no such folder"),
        ({"caption_strategy": "metadata", "metadata_file": "a\0b"}, "metadata_file", "no such file"),
        ({"caption_strategy": "class"}, "metadata_file", "`simpletuner imagenet sample` writes such a file"),
        ({"caption_strategy": "class"}, "class_names", "is not set, but caption_strategy is class"),
        ({"caption_strategy": "class", "class_names": "gone.json"}, "class_names", "no such file in"),
        ({"caption_strategy": "class", "caption_template": "a photo"}, "caption_template", "Write {class} where"),
        ({"crop_pct": 0}, "crop_pct", "more than 0 and at most 1"),
        ({"crop_pct": 1.5}, "crop_pct", "more than 0 and at most 1"),
    ],
)
def test_errors(tmp_path: Path, values: dict[str, Any], key: str, words: str) -> None:
    loaded, problems = load(tmp_path, entry(tmp_path, **values))
    name = values.get("id", "mine") or "entry 1"
    assert loaded == []
    assert words in problems[f"data.json: {name}.{key}"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"instance_prompt": "a cat"}, "instance_prompt"),
        ({"video": {"num_frames": 9}}, "video"),
        ({"crop": False, "crop_aspect": "square"}, "crop_aspect"),
        ({"crop": False, "crop_pct": 0.9}, "crop_pct"),
        ({"class_names": "names.json"}, "class_names"),
        ({"caption_template": "{class}"}, "caption_template"),
    ],
)
def test_options_without_effect_are_warnings(tmp_path: Path, values: dict[str, Any], key: str) -> None:
    loaded, problems = load(tmp_path, entry(tmp_path, **values))
    assert len(loaded) == 1 and "has no effect" in problems[f"data.json: mine.{key}"]


def test_ids_are_unique(tmp_path: Path) -> None:
    loaded, problems = load(tmp_path, entry(tmp_path), entry(tmp_path))
    assert loaded == [] and "used 2 times" in problems["data.json: mine.id"]


@pytest.mark.parametrize("content", ["{}", "[1]", "[]", "["])
def test_files_without_data_sets(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    loaded, problems = load_dataset_config(path)
    assert loaded == [] and problems[0].option == str(path)


@pytest.mark.parametrize(
    ("values", "key", "mend"),
    [
        ({}, "crop_aspect", "Set crop_aspect to 'square'."),
        ({"crop": False}, "crop", "Set crop to true and crop_aspect to 'square'."),
        ({"crop_aspect": "square"}, "", ""),
    ],
)
def test_square_families_warn_of_other_shapes(tmp_path: Path, values: dict[str, Any], key: str, mend: str) -> None:
    square = DatasetEntry(id="mine", instance_data_dir=str(tmp_path), **values)
    found = check_entries([square], Config(data_backend_config="d.json"), replace(TRANSFORMER, square_only=True))
    assert [(p.option, p.severity, p.mend) for p in found] == (
        [(f"d.json: mine.{key}", "warning", mend)] if key else []
    )


def test_entries_fit_the_family(tmp_path: Path) -> None:
    clips = DatasetEntry(id="clips", dataset_type="video", instance_data_dir=str(tmp_path))
    odd = clips.model_copy(update={"video": clips.video.model_copy(update={"num_frames": 50})})
    small = DatasetEntry(id="small", instance_data_dir=str(tmp_path), resolution=72)
    config = Config(data_backend_config="data.json")
    assert check_entries([clips, odd, small], config, None) == []
    assert "makes images" in str(check_entries([clips], config, TRANSFORMER)[0])
    assert check_entries([clips], config, VIDEO) == []
    assert "Use 49 or 53." in str(check_entries([odd], config, VIDEO)[0])
    (problem,) = check_entries([small], config, TRANSFORMER)
    assert problem.option == "data.json: small.resolution" and "Use 64 or 80." in problem.mend


def test_class_files_lie_in_the_folder_or_where_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, here = tmp_path / "data", tmp_path / "here"
    data.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (data / "list.csv").touch()
    (here / "names.json").touch()
    values = entry(data, caption_strategy="class", metadata_file="list.csv", class_names="names.json")
    ((mine,), problems) = load(tmp_path, values)
    assert problems == {}
    assert entry_file(mine, mine.metadata_file) == data / "list.csv"
    assert entry_file(mine, "names.json").resolve() == here / "names.json"
