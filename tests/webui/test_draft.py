"""A project being edited, and its examination."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.configuration.problems import Problem
from simpletuner.webui import draft
from simpletuner.webui.draft import Draft, Examination, Examiner, dataset_place, examine, same
from simpletuner.webui.projects import Project
from simpletuner.webui.site import Site


def make_draft(**values: Any) -> Draft:
    return Draft(Project("one", Path("one.json"), values, "1"))


def test_a_value_is_set_and_left_out_again() -> None:
    edited = make_draft(seed=1)
    edited.set("crepa_lambda", 0.3)
    assert edited.values == {"seed": 1, "crepa_lambda": 0.3} and edited.changed
    edited.unset("crepa_lambda")
    assert edited.values == {"seed": 1} and not edited.changed
    assert edited.was_set("seed") and not edited.was_set("crepa_lambda")
    assert edited.get("crepa_lambda") is None


def test_other_names_of_options_are_read_and_give_way() -> None:
    edited = make_draft(crepa_model="dinov2_vits14", crepa_use_backbone_features=True)
    assert edited.get("crepa_encoder") == "dinov2_vits14"
    assert edited.get("crepa_feature_source") == "backbone"
    edited.set("crepa_encoder", "dinov2_vitb14")
    edited.unset("crepa_feature_source")
    assert edited.values == {"crepa_encoder": "dinov2_vitb14"}


def test_names_that_are_no_options_stay() -> None:
    edited = make_draft(hub_token="secret", seed=1)
    edited.set("seed", 2)
    edited.unset("no_such_option")
    assert edited.values == {"hub_token": "secret", "seed": 2}


def test_saving_settles_only_what_was_saved() -> None:
    edited = make_draft(seed=1)
    edited.set("seed", 2)
    saved = Project("one", Path("one.json"), dict(edited.values), "2")
    edited.set("resolution", 512)  # typed while the file was written
    edited.settle(saved)
    assert edited.version == "2" and edited.changed
    edited.unset("resolution")
    assert not edited.changed


def test_what_is_the_same_in_json() -> None:
    assert same({"a": 1, "b": [1.5]}, {"b": [1.5], "a": 1})
    assert not same({"a": 1}, {"a": True})
    assert not same({"a": 1}, {"a": 1.0})


def test_an_examination_knows_family_problems_and_what_has_no_effect(site: Site) -> None:
    values = {"model_family": "sd3", "crepa_enabled": True, "crepa_lambda": "0.3", "crepa_model": 5}
    found = examine(site, values)
    assert found.family is not None and found.family.depth == 24
    assert found.config.crepa.lambda_ == 0.5  # what is invalid has its default
    assert [problem.mend for problem in found.of("crepa_lambda")] == ["Write it without quotes."]
    assert [problem.severity for problem in found.of("crepa_encoder")] == ["error"]
    assert "crepa_lambda" not in found.unmet
    assert found.unmet["crepa_decay_steps"] == "crepa_scheduler is 'constant'"
    assert found.unmet["urepa_lambda"] == "urepa_enabled is false"


def test_an_edited_list_of_data_sets_is_checked_instead_of_the_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    listed = tmp_path / "data.json"
    listed.write_text(json.dumps([{"id": "a", "instance_data_dir": "gone"}]))
    values = {"model_family": "sd3", "data_backend_config": "data.json"}
    assert [problem.option for problem in examine(site, values).problems if "data.json" in problem.option] == [
        "data.json: a.instance_data_dir"
    ]
    edited = [{"id": "b", "instance_data_dir": "pictures", "repeats": -1}]
    found = [problem for problem in examine(site, values, edited).problems if "data.json" in problem.option]
    assert [dataset_place(problem, Path("data.json")) for problem in found] == [("b", "repeats")]


def test_a_list_that_is_still_to_be_written_is_no_missing_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    values = {"data_backend_config": "new.json"}
    assert "data_backend_config" in {problem.option for problem in examine(site, values).problems}
    found = examine(site, values, [{"id": "b", "instance_data_dir": "pictures"}])
    assert "data_backend_config" not in {problem.option for problem in found.problems}


def test_the_place_of_a_problem_of_a_data_set() -> None:
    path = Path("some/data.json")
    assert dataset_place(Problem("data.json: my.set.video.num_frames", "", ""), path) == ("my.set", "video.num_frames")
    assert dataset_place(Problem("data.json: entry 2.id", "", ""), path) == ("entry 2", "id")
    assert dataset_place(Problem("seed", "", ""), path) is None
    assert dataset_place(Problem("seed", "", ""), Path()) is None


async def test_the_last_state_is_examined_once_it_is_still(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "DELAY", 0.02)
    state, shown, done = {"seed": 0}, list[Examination](), asyncio.Event()

    async def look() -> Any:
        values = dict(state)
        return lambda: examine(site, values)

    def show(found: Examination) -> None:
        shown.append(found)
        done.set()

    examiner = Examiner(look, show)
    for seed in range(1, 6):
        state["seed"] = seed
        examiner.changed()
        await asyncio.sleep(0)
    await asyncio.wait_for(done.wait(), 5)
    assert [found.config.seed for found in shown] == [5]
    examiner.close()
