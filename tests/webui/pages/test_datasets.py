"""The cards of the data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nicegui.testing import User

from simpletuner.webui.pages.datasets import ENTRY_OPTIONS, VIDEO_OPTIONS
from simpletuner.webui.pages.layout import LANGUAGE_COOKIE
from simpletuner.webui.site import Site
from tests.webui.pages.looking import element, until
from tests.webui.pages.person import content, fill, open_project, problems_beside, seen


@pytest.fixture
def pictures(site: Site) -> str:
    """A folder of the site that data sets can name."""
    folder = site.roots[0] / "pictures"
    folder.mkdir()
    return str(folder)


def listed(site: Site) -> Path:
    return site.configs / "one-data.json"


async def save(user: User) -> None:
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))


async def test_every_option_of_a_data_set_has_a_field(user: User, site: Site) -> None:
    await open_project(user, site, "wan-crepa-lora", tab="data")
    assert user.client is not None
    marks = [mark for item in user.client.elements.values() for mark in item._markers]
    keys = [*ENTRY_OPTIONS, *(f"video.{name}" for name in VIDEO_OPTIONS)]
    missing = {key for key in keys if f"dataset_0_{key}" not in marks}
    assert missing == {"video", "type", "crop_style"}  # what has parts of its own, and what can't be chosen


async def test_a_data_set_is_edited_checked_and_saved(user: User, site: Site, pictures: str) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="data")
    before = content(listed(site))
    (told,) = problems_beside(user, "dataset_0_instance_data_dir")
    assert told.startswith("no such folder")
    fill(user, "dataset_0_instance_data_dir", pictures)
    assert seen(user, "unsaved")
    await until(lambda: not problems_beside(user, "dataset_0_instance_data_dir"))
    assert element(user, "problems").text == "No problems"
    fill(user, "dataset_0_repeats", "-1")
    await until(lambda: problems_beside(user, "dataset_0_repeats"))
    fill(user, "dataset_0_repeats", "2")
    await until(lambda: not problems_beside(user, "dataset_0_repeats"))
    await save(user)
    assert content(listed(site)) == [before[0] | {"instance_data_dir": pictures, "repeats": 2}]


async def test_fields_of_captions_and_clips_come_and_go(user: User, site: Site, pictures: str) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="data")
    fill(user, "dataset_0_instance_data_dir", pictures)
    assert not seen(user, "field_dataset_0_instance_prompt")
    fill(user, "dataset_0_caption_strategy", "instanceprompt")
    fill(user, "dataset_0_instance_prompt", "a cat")
    assert seen(user, "field_dataset_0_instance_prompt")
    assert not seen(user, "field_dataset_0_video.num_frames")
    fill(user, "dataset_0_dataset_type", "video")
    assert seen(user, "field_dataset_0_video.num_frames")
    await until(lambda: problems_beside(user, "dataset_0_dataset_type"))  # of a family that makes images
    fill(user, "model_family", "wan")
    fill(user, "dataset_0_video.num_frames", "50")
    await until(lambda: problems_beside(user, "dataset_0_video.num_frames"))
    assert "Use 49 or 53." in problems_beside(user, "dataset_0_video.num_frames")[0]
    fill(user, "dataset_0_video.num_frames", "53")
    await until(lambda: not problems_beside(user, "dataset_0_video.num_frames"))
    await save(user)
    assert content(listed(site))[0]["video"] == {"num_frames": 53}
    fill(user, "dataset_0_video.num_frames", "")
    await save(user)
    assert "video" not in content(listed(site))[0]


async def test_add_duplicate_remove_and_undo(user: User, site: Site, pictures: str) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="data")
    user.find(marker="datasets_add").click()
    assert element(user, "dataset_1_id").value == "data"
    fill(user, "dataset_1_instance_data_dir", pictures)
    user.find(marker="dataset_0_duplicate").click()
    assert [element(user, f"dataset_{number}_id").value for number in range(3)] == ["my-images", "my-images-2", "data"]
    user.find(marker="dataset_0_remove").click()
    assert not seen(user, "dataset_2_id") and seen(user, "datasets_undo")
    await user.should_see("Removed my-images.")
    user.find(marker="datasets_undo").click()
    assert element(user, "dataset_0_id").value == "my-images" and not seen(user, "datasets_undo")
    user.find(marker="dataset_1_remove").click()
    await save(user)
    assert [entry["id"] for entry in content(listed(site))] == ["my-images", "data"]


async def test_a_problem_of_a_data_set_leads_to_its_field(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    user.find(marker="problems").click()
    user.find(marker="listed_problem").click()
    assert element(user, "tab_data").tabs.value == "data"


async def test_a_project_without_a_list_gets_one(user: User, site: Site, pictures: str) -> None:
    path = await open_project(user, site, None, tab="data")
    assert not seen(user, "datasets_add")
    fill(user, "model_family", "wan")
    user.find(marker="datasets_make").click()
    assert element(user, "data_backend_config").value == "config/one-data.json"
    await until(lambda: seen(user, "datasets_add"))
    assert not seen(user, "datasets_make") and not listed(site).exists()
    user.find(marker="datasets_add").click()
    assert element(user, "dataset_0_dataset_type").value == "video"
    fill(user, "dataset_0_instance_data_dir", pictures)
    await until(lambda: not problems_beside(user, "data_backend_config"))
    await save(user)
    assert content(path)["data_backend_config"] == "config/one-data.json"
    assert content(listed(site)) == [{"id": "data", "dataset_type": "video", "instance_data_dir": pictures}]


async def test_another_list_is_shown_when_the_project_names_it(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="data")
    other = site.configs / "other.json"
    other.write_text(json.dumps([{"id": "elsewhere"}]))
    fill(user, "dataset_0_id", "edited")
    fill(user, "data_backend_config", "config/other.json")
    await until(lambda: element(user, "dataset_0_id").value == "elsewhere")
    fill(user, "data_backend_config", "config/one-data.json")
    await until(lambda: element(user, "dataset_0_id").value == "edited")  # what was typed is not lost


async def test_a_list_outside_of_the_roots_is_not_read(
    user: User, site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "data.json"
    outside.write_text(json.dumps([{"id": "private"}]))
    await open_project(user, site, "sd3-repa-lora", tab="data")
    fill(user, "data_backend_config", str(outside))
    await until(lambda: seen(user, "datasets_reason"))
    assert "outside" in element(user, "datasets_reason").text
    assert not seen(user, "datasets_add") and not seen(user, "dataset_0_id")
    await user.should_not_see("private")


async def test_in_chinese(user: User, site: Site) -> None:
    user.http_client.cookies.set(LANGUAGE_COOKIE, "zh")
    await open_project(user, site, "sd3-repa-lora", tab="data")
    user.find(marker="datasets_add").click()
    assert seen(user, "dataset_1_id")
