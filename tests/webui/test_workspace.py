"""The files of a project that is being edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner.webui.projects import Conflict, create_project, save_project
from simpletuner.webui.site import Site
from simpletuner.webui.workspace import Workspace, free_name, read_draft


@pytest.fixture
def workspace(site: Site) -> Workspace:
    create_project(site, "one", "sd3-repa-lora")
    return Workspace(site, "one")


async def test_nothing_changed_writes_nothing(workspace: Workspace) -> None:
    before = workspace.draft.path.stat().st_mtime_ns
    assert not workspace.changed
    assert not await workspace.save()
    assert workspace.draft.path.stat().st_mtime_ns == before


async def test_project_and_list_are_saved_together(workspace: Workspace, site: Site) -> None:
    workspace.draft.set("seed", 7)
    workspace.datasets.entries[0]["repeats"] = 3
    assert workspace.changed and workspace.edited_entries == workspace.datasets.entries
    assert await workspace.save()
    assert not workspace.changed and workspace.edited_entries is None
    again = Workspace(site, "one")
    assert again.draft.values["seed"] == 7
    assert again.datasets.entries[0]["repeats"] == 3


async def test_a_second_save_from_elsewhere_conflicts_until_it_is_overwritten(workspace: Workspace, site: Site) -> None:
    other = Workspace(site, "one")
    other.draft.set("seed", 1)
    await other.save()
    workspace.draft.set("seed", 2)
    with pytest.raises(Conflict):
        await workspace.save()
    assert workspace.changed
    assert await workspace.save(overwrite=True)
    assert Workspace(site, "one").draft.values["seed"] == 2


async def test_a_list_that_changed_on_disk_conflicts_too(workspace: Workspace, site: Site) -> None:
    assert workspace.datasets.path is not None
    workspace.datasets.path.write_text(json.dumps([{"id": "other"}]))
    workspace.datasets.entries[0]["repeats"] = 3
    with pytest.raises(Conflict):
        await workspace.save()
    await workspace.reload()
    assert workspace.datasets.entries == [{"id": "other"}] and not workspace.changed


async def test_what_became_of_the_file(workspace: Workspace, site: Site) -> None:
    path = workspace.draft.path
    assert workspace.look_at_disk() == "as before"
    save_project(site, "one", workspace.draft.values | {"seed": 3}, None)
    assert workspace.look_at_disk() == "changed"
    assert workspace.look_at_disk() == "as before"
    path.write_text("{")
    assert workspace.look_at_disk() == "changed"
    path.unlink()
    assert workspace.look_at_disk() == "gone"
    await workspace.save(overwrite=True)
    assert path.exists() and workspace.look_at_disk() == "as before"


async def test_another_list_is_followed_and_edits_of_the_first_are_kept(workspace: Workspace, site: Site) -> None:
    named = workspace.datasets.named
    workspace.datasets.entries[0]["repeats"] = 3
    workspace.draft.set("data_backend_config", "config/other.json")
    assert await workspace.follow()
    assert workspace.datasets.entries == [] and workspace.datasets.editable
    workspace.draft.set("data_backend_config", named)
    assert await workspace.follow() and not await workspace.follow()
    assert workspace.datasets.entries[0]["repeats"] == 3


def test_a_list_outside_of_the_roots_is_not_read(site: Site, tmp_path: Path) -> None:
    found = read_draft(site, {"data_backend_config": "../elsewhere.json"})
    assert not found.editable and "outside" in found.reason
    (tmp_path / "object.json").write_text("{}")
    found = read_draft(site, {"data_backend_config": "object.json"})
    assert not found.editable and "no list of data sets" in found.reason
    found = read_draft(site, {"data_backend_config": 5})
    assert found.named == "" and not found.editable and not found.reason


def test_a_name_that_none_has() -> None:
    entries = [{"id": "data"}, {"id": "data-2"}, {}]
    assert free_name(entries, "data") == "data-3"
    assert free_name(entries, "other") == "other"
    assert free_name([], "data") == "data"
