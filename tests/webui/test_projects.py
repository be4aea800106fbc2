"""The projects of a folder: nothing in a file is lost, and of two writers one is told."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.confinement import Refused
from simpletuner.webui.known_runs import read_run
from simpletuner.webui.projects import (
    Conflict,
    NotFound,
    ProjectError,
    Taken,
    checked_name,
    create_project,
    delete_project,
    duplicate_project,
    list_examples,
    list_projects,
    read_datasets,
    read_project,
    rename_project,
    save_datasets,
    save_project,
)
from simpletuner.webui.secrets import MASK, hide
from simpletuner.webui.site import Site, make_site
from tests.disk import disk_with_room_for
from tests.webui.small_runs import ID, make_record


def write(site: Site, name: str, content: Any) -> Path:
    """A file among the projects: JSON, or text as it is."""
    path = site.configs / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def content(site: Site, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((site.configs / f"{name}.json").read_text())
    return values


def files(site: Site) -> list[str]:
    return sorted(path.name for path in site.configs.iterdir())


def test_every_example_makes_a_project(site: Site) -> None:
    examples = list_examples()
    assert {example.family for example in examples} == set(FAMILIES)
    for number, known in enumerate(examples):
        project = create_project(site, f"p{number}", known.name)
        assert project.values["model_family"] == known.family
        assert project.values["output_dir"] == f"output/p{number}"
        assert project.values["data_backend_config"] == f"config/p{number}-data.json"
        datasets = read_datasets(site, project.values)
        assert datasets is not None and datasets.entries and datasets.path == site.configs / f"p{number}-data.json"
    assert {summary.method for summary in list_projects(site)} == {"REPA", "CREPA", "U-REPA"}
    assert not [summary.problem for summary in list_projects(site) if summary.problem]


def test_an_empty_project_and_one_of_values(site: Site) -> None:
    assert create_project(site, "empty").values == {"output_dir": "output/empty"}
    made = create_project(site, "made", values={"--seed": 1, "output_dir": "elsewhere", "hub_token": MASK})
    assert content(site, "made") == made.values == {"output_dir": "elsewhere", "seed": 1}
    with pytest.raises(NotFound, match="no example 'nothing'"):
        create_project(site, "x", "nothing")


def test_outside_of_the_roots_a_new_project_writes_into_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    site = make_site(tmp_path / "root" / "config", [tmp_path / "root"])
    values = create_project(site, "a", "sd3-repa-lora").values
    assert values["output_dir"] == str(tmp_path / "root" / "output" / "a")
    assert values["cache_dir"] == str(tmp_path / "root" / "cache")
    assert values["data_backend_config"] == str(site.configs / "a-data.json")


def test_the_folder_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    site = make_site(Path("new/config"))
    assert list_projects(site) == []
    create_project(site, "a")
    assert [summary.name for summary in list_projects(site)] == ["a"]


def test_what_can_not_be_read_is_listed_with_the_reason(site: Site) -> None:
    write(site, "fine.json", {"model_family": "wan", "crepa_enabled": True})
    write(site, "broken.json", '{"a": 1,\n "b" }')
    write(site, "number.json", "3")
    write(site, "twice.json", '{"seed": 1, "seed": 2}')
    write(site, "deep.json", '{"a": ' + "[" * 100 + "]" * 100 + "}")
    write(site, "abyss.json", "[" * 100_000)
    write(site, "nan.json", '{"seed": NaN}')
    write(site, "half.json", '{"a": "\\ud800"}')
    write(site, "at@name.json", {"seed": 1})
    write(site, "list.json", [{"id": "no project"}])
    write(site, ".hidden.json", {})
    (site.configs / "latin.json").write_bytes(b'{"a": "\xe9"}')
    (site.configs / "large.json").write_bytes(b" " * (2**21 + 1))
    (site.configs / "folder.json").mkdir()
    os.mkfifo(site.configs / "pipe.json")
    (site.configs / "dangling.json").symlink_to("gone")
    (site.configs / "out.json").symlink_to("/etc/hostname")
    Path(os.fsdecode(os.fsencode(site.configs) + b"/odd\xff.json")).write_text("{}")
    found = {summary.name: summary for summary in list_projects(site)}
    assert found["fine"].family == "wan" and found["fine"].method == "CREPA" and found["fine"].problem is None
    problems = {name: summary.problem for name, summary in found.items() if name != "fine"}
    words = {
        "broken": "line 2, column 6",
        "number": "no JSON object",
        "twice": "'seed' more than once",
        "deep": "nested too deeply",
        "abyss": "nested too deeply",
        "nan": "nan is no number",
        "half": "half a character",
        "at@name": "can't be the name",
        "latin": "not UTF-8",
        "large": "larger than 2 MiB",
        "pipe": "no regular file",
        "dangling": "There is no",
        "out": "lies outside of",
        "odd?": "can be no path",
    }
    assert set(problems) == set(words)
    for name, word in words.items():
        assert word in str(problems[name]), problems[name]
        json.dumps(problems[name]).encode()
        with pytest.raises(ProjectError):
            read_project(site, name)


def test_many_names_take_no_time(site: Site) -> None:
    """Not the square of their number: a file can have some hundred thousand."""
    write(site, "many.json", {f"n{number}": 0 for number in range(120_000)})
    began = time.process_time()
    assert len(read_project(site, "many").values) == 120_000
    assert time.process_time() - began < 20


def test_a_broken_project_can_be_deleted(site: Site) -> None:
    write(site, "broken.json", "{")
    delete_project(site, "broken")
    assert files(site) == []


@pytest.mark.parametrize("name", ["a", "a b", "größe", "名前", "प्रोजेक्ट 1", "v1.2-final_3", "_x", "9"])
def test_names_that_can_be(site: Site, name: str) -> None:
    create_project(site, name)
    assert [summary.name for summary in list_projects(site)] == [name]
    assert read_project(site, name).path == site.configs / f"{name}.json"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", " a", "a ", "a.", "-a", "a/b", "../a", "/etc/passwd", "a\\b", "a\0", "a\n", "a@b", "C:a",
     "x" * 101, "名" * 100, "mine-data", "mine-DATA", "a.json", "con", "NUL.txt", "com1", "a\ud800"],
)  # fmt: skip
def test_names_that_can_not_be(site: Site, name: str) -> None:
    for act in (create_project, read_project, delete_project):
        with pytest.raises(ProjectError):
            act(site, name)
    create_project(site, "real")
    for other in (duplicate_project, rename_project):
        with pytest.raises(ProjectError):
            other(site, "real", name)
    with pytest.raises(ProjectError):
        save_project(site, name, {}, None)
    assert files(site) == ["real.json"]


@given(st.text(max_size=110))
@example("a-data")
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    """A name is refused, or is that of a file in the folder, which is listed under it."""
    with tempfile.TemporaryDirectory() as folder:
        site = make_site(Path(folder) / "config", [Path(folder)])
        try:
            create_project(site, name)
        except ProjectError:
            assert not site.configs.exists() or files(site) == []
            return
        assert files(site) == [f"{checked_name(name)}.json"]
        assert [summary.name for summary in list_projects(site)] == [name]


def test_saving_keeps_what_it_does_not_know(site: Site) -> None:
    write(site, "a.json", {"zzz": {"b": 1, "a": [None]}, "--seed": 1, "unknown": "ü", "model_family": "sd3"})
    project = read_project(site, "a")
    assert list(project.values) == ["zzz", "seed", "unknown", "model_family"]
    saved = save_project(site, "a", project.values | {"crepa_enabled": True, "output_dir": "o"}, project.version)
    text = (site.configs / "a.json").read_text()
    assert list(json.loads(text)) == ["model_family", "output_dir", "seed", "crepa_enabled", "zzz", "unknown"]
    assert '"unknown": "ü"' in text and text.endswith("}\n") and '\n  "seed": 1,\n' in text
    assert '"b": 1,\n    "a"' in text
    assert read_project(site, "a") == saved


def test_saving_twice_gives_the_same_bytes(site: Site) -> None:
    for known in list_examples()[:4]:
        project = create_project(site, known.name, known.name)
        before = project.path.read_bytes()
        backwards = dict(reversed(list(project.values.items())))
        assert save_project(site, known.name, backwards, project.version).version == project.version
        assert project.path.read_bytes() == before


def test_secrets_that_come_back_masked_stay(site: Site) -> None:
    write(site, "a.json", {"hub_token": "abcdef", "seed": 1})
    save_project(site, "a", hide(read_project(site, "a").values) | {"seed": 2, "new_token": MASK}, None)
    assert content(site, "a") == {"seed": 2, "hub_token": "abcdef"}


def test_a_file_that_changed_meanwhile_is_a_conflict(site: Site) -> None:
    project = create_project(site, "a")
    write(site, "a.json", {"seed": 7})
    with pytest.raises(Conflict, match="changed on disk") as caught:
        save_project(site, "a", {"seed": 1}, project.version)
    assert content(site, "a") == {"seed": 7} and caught.value.version == read_project(site, "a").version
    save_project(site, "a", {"seed": 1}, None)
    assert content(site, "a") == {"seed": 1}
    delete_project(site, "a")
    with pytest.raises(Conflict, match="was deleted") as caught:
        save_project(site, "a", {"seed": 1}, project.version)
    assert caught.value.version == "" and files(site) == []
    save_project(site, "a", {"seed": 1}, "")


def test_of_many_simultaneous_saves_one_is_done(site: Site) -> None:
    version = create_project(site, "a").version
    done: list[int] = []
    conflicts: list[int] = []
    gate = threading.Barrier(8)

    def save(number: int) -> None:
        gate.wait()
        try:
            save_project(site, "a", {"seed": number}, version)
            done.append(number)
        except Conflict:
            conflicts.append(number)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1 and len(conflicts) == 7
    assert content(site, "a") == {"seed": done[0]} and files(site) == ["a.json"]


def test_the_mode_of_a_file_stays(site: Site) -> None:
    path = write(site, "a.json", {})
    path.chmod(0o640)
    save_project(site, "a", {"seed": 1}, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_linked_project_is_saved_where_it_lies(site: Site, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    real = tmp_path / "kept" / "real.json"
    real.write_text("{}")
    (site.configs / "a.json").symlink_to(real)
    save_project(site, "a", {"seed": 1}, read_project(site, "a").version)
    assert json.loads(real.read_text()) == {"seed": 1} and (site.configs / "a.json").is_symlink()
    delete_project(site, "a")
    assert real.exists() and files(site) == []


def test_a_link_out_of_the_roots_is_refused(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "a.json"
    outside.write_text('{"seed": 1}')
    (site.configs / "a.json").symlink_to(outside)
    with pytest.raises(ProjectError, match="outside"):
        read_project(site, "a")
    with pytest.raises(ProjectError, match="outside"):
        save_project(site, "a", {"seed": 2}, None)
    with pytest.raises(ProjectError, match="outside"):
        duplicate_project(site, "a", "b")
    assert json.loads(outside.read_text()) == {"seed": 1}


def test_values_that_no_file_can_hold(site: Site) -> None:
    create_project(site, "a", values={"seed": 1})
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in (float("nan"), float("inf"), 10**400, "\ud800", deep, {"\udcff": 1}, "x" * 2**21):
        with pytest.raises(ProjectError):
            save_project(site, "a", {"new": value}, None)
        with pytest.raises(ProjectError):
            create_project(site, "b", values={"new": value})
    assert content(site, "a")["seed"] == 1 and files(site) == ["a.json"]


def test_a_full_disk_leaves_everything_as_it_was(site: Site) -> None:
    project = create_project(site, "a", "sd3-repa-lora")
    before = {path.name: path.read_bytes() for path in site.configs.iterdir()}
    assert project.values["data_backend_config"]
    with disk_with_room_for(300):  # enough for the list of data sets
        for act in (
            lambda: save_project(site, "a", project.values | {"seed": 2}, project.version),
            lambda: duplicate_project(site, "a", "b"),
            lambda: create_project(site, "b", "sd3-repa-lora"),
            lambda: rename_project(site, "a", "b"),
        ):
            with pytest.raises(ProjectError, match=r"can't be written: File too large"):
                act()
    assert {path.name: path.read_bytes() for path in site.configs.iterdir()} == before


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    site = make_site(tmp_path / "config", [tmp_path])
    (tmp_path / "config").write_text("in the way")
    with pytest.raises(ProjectError, match=f"{tmp_path / 'config'} can't be written"):
        create_project(site, "a")
    assert list_projects(site) == []


def test_a_copy_has_its_own_data_sets_and_output(site: Site) -> None:
    create_project(site, "a", "sd3-repa-lora")
    values = duplicate_project(site, "a", "b").values
    assert values["output_dir"] == "output/b" and values["data_backend_config"] == "config/b-data.json"
    assert files(site) == ["a-data.json", "a.json", "b-data.json", "b.json"]
    assert (site.configs / "a-data.json").read_bytes() == (site.configs / "b-data.json").read_bytes()
    with pytest.raises(Taken):
        duplicate_project(site, "a", "b")
    save_project(site, "a", {"output_dir": "/mnt/runs/a", "data_backend_config": "config/b-data.json"}, None)
    values = duplicate_project(site, "a", "c").values
    assert values["output_dir"] == "/mnt/runs/c" and values["data_backend_config"] == "config/b-data.json"


def test_renaming_takes_the_data_sets_along(site: Site) -> None:
    create_project(site, "a", "sd3-repa-lora")
    project = rename_project(site, "a", "b")
    assert files(site) == ["b-data.json", "b.json"]
    assert project.values["data_backend_config"] == "config/b-data.json" and project.values["output_dir"] == "output/a"
    assert rename_project(site, "b", "b") == project
    create_project(site, "c")
    with pytest.raises(Taken, match=r"c\.json is there already"):
        rename_project(site, "b", "c")
    write(site, "d-data.json", [])
    with pytest.raises(Taken, match=r"d-data\.json is there already"):
        rename_project(site, "b", "d")
    assert read_project(site, "b") == project


def test_renaming_takes_the_runs_along(site: Site) -> None:
    """Also one that is active."""
    create_project(site, "a")
    make_record(site, project="a")
    make_record(site, project="c", run_id=(other := ID.replace("2030", "2031")))
    (make_record(site, run_id=ID.replace("2030", "2032")) / "record.json").write_text("broken")
    with disk_with_room_for(10), pytest.raises(ProjectError, match="can't be written"):
        rename_project(site, "a", "b")
    assert read_project(site, "a").values and read_run(site, ID).project == "a"
    rename_project(site, "a", "b")
    assert (read_run(site, ID).project, read_run(site, other).project) == ("b", "c")


def test_shared_data_sets_stay(site: Site) -> None:
    create_project(site, "a", "sd3-repa-lora")
    create_project(site, "b", values={"data_backend_config": "./config/../config/a-data.json"})
    assert rename_project(site, "a", "c").values["data_backend_config"] == "config/a-data.json"
    rename_project(site, "c", "a")
    delete_project(site, "a")
    assert files(site) == ["a-data.json", "b.json"]
    with pytest.raises(Taken, match=r"a-data\.json is there already"):
        create_project(site, "a", "sd3-repa-lora")
    delete_project(site, "b")  # not its own
    assert files(site) == ["a-data.json"]


def test_deleting_takes_the_data_sets_along(site: Site) -> None:
    create_project(site, "a", "sd3-repa-lora")
    (site.configs.parent / "output" / "a").mkdir(parents=True)
    delete_project(site, "a")
    assert files(site) == [] and (site.configs.parent / "output" / "a").exists()
    with pytest.raises(NotFound):
        delete_project(site, "a")


def test_data_sets_are_read_and_saved(site: Site) -> None:
    project = create_project(site, "a", "sd3-repa-lora")
    datasets = read_datasets(site, project.values)
    assert datasets is not None
    entries = [{"id": "x", "odd": 1, "api_key": "abc"}]
    saved = save_datasets(site, datasets.path, entries, datasets.version)
    assert read_datasets(site, project.values) == saved and saved.entries == entries
    with pytest.raises(Conflict):
        save_datasets(site, datasets.path, [], datasets.version)
    assert save_datasets(site, datasets.path, hide(entries), saved.version).entries == entries


def test_data_sets_that_are_not_there(site: Site) -> None:
    assert read_datasets(site, {}) is None and read_datasets(site, {"data_backend_config": ""}) is None
    missing = read_datasets(site, {"data_backend_config": "config/new-data.json"})
    assert missing is not None and missing.entries == [] and missing.version == ""
    saved = save_datasets(site, missing.path, [{"id": "a"}], missing.version)
    assert json.loads(missing.path.read_text()) == [{"id": "a"}] and saved.version
    with pytest.raises(Conflict):
        save_datasets(site, missing.path, [], "")


def test_data_sets_elsewhere_or_of_another_kind(site: Site) -> None:
    for place in ("/etc/data.json", "../data.json"):
        with pytest.raises(Refused):
            read_datasets(site, {"data_backend_config": place})
        with pytest.raises(Refused):
            save_datasets(site, place, [], None)
    create_project(site, "a")
    with pytest.raises(ProjectError, match="holds no list of data sets"):
        read_datasets(site, {"data_backend_config": "config/a.json"})
    with pytest.raises(ProjectError, match="holds a configuration"):
        save_datasets(site, "config/a.json", [], None)
    with pytest.raises(ProjectError, match=r"ends in \.json"):
        save_datasets(site, "config/a.txt", [], None)
    write(site, "odd-data.json", [1, 2])
    with pytest.raises(ProjectError, match="holds no list of data sets"):
        read_datasets(site, {"data_backend_config": "config/odd-data.json"})
