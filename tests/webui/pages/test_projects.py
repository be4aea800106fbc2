"""The page of all projects."""

from __future__ import annotations

import pytest
from nicegui.testing import User

from simpletuner.webui.pages.layout import LANGUAGE_COOKIE
from simpletuner.webui.projects import create_project, list_projects, read_project
from simpletuner.webui.site import Site
from tests.webui.pages.looking import PATIENT, choose, element, until
from tests.webui.pages.person import fill
from tests.webui.pages.recorded import record_run, row


def names(site: Site) -> list[str]:
    return [project.name for project in list_projects(site)]


async def test_an_empty_folder_says_what_to_do(user: User) -> None:
    await user.open("/")
    await user.should_see("no_projects", retries=PATIENT)
    await user.should_see("new_project")


async def test_what_is_said_of_each_project(user: User, site: Site) -> None:
    create_project(site, "sky", "wan-crepa-lora")
    create_project(site, "sea")
    (site.configs / "broken.json").write_text("{")
    run = record_run(site, 1, rows=[row(4)], code=2, project="sky")
    await user.open("/")
    await user.should_see("wan · CREPA · changed", retries=PATIENT)
    await user.should_see("no alignment")
    await user.should_see("is not valid JSON")
    assert element(user, "open_sky").props["href"] == "/projects/sky"
    state = element(user, "state_sky")
    assert state.text == "Failed (exit code 2)" and state.props["href"] == f"/runs/{run.id}"
    await user.should_not_see("open_broken")
    await user.should_not_see("no_projects")


async def test_a_project_is_made_from_the_example_of_a_family(user: User, site: Site) -> None:
    await user.open("/")
    user.find(marker="new_project").click()
    await user.should_see("new_dialog", retries=PATIENT)
    await user.should_not_see("new_example")
    await choose(user, "new_family", "sd3")
    assert element(user, "new_example").value == "sd3-repa-lora"
    assert element(user, "new_name").value == "sd3-repa-lora"  # until the reader has a better one
    fill(user, "new_name", "mine")
    await choose(user, "new_family", "wan")
    assert element(user, "new_name").value == "mine"
    user.find(marker="new_create").click()
    await user.should_see("field_model_family", retries=PATIENT)
    assert user.back_history[-1] == "/projects/mine"
    assert read_project(site, "mine").values["model_family"] == "wan"


async def test_an_empty_project_with_a_name_beyond_ascii(user: User, site: Site) -> None:
    await user.open("/")
    user.find(marker="new_project").click()
    await user.should_see("new_dialog", retries=PATIENT)
    fill(user, "new_name", "猫 1")
    user.find(marker="new_create").click()
    await user.should_see("field_model_family", retries=PATIENT)
    assert names(site) == ["猫 1"] and "model_family" not in read_project(site, "猫 1").values


@pytest.mark.parametrize("name", ["", "../up", "taken"])
async def test_a_name_that_can_not_be_had_says_why(user: User, site: Site, name: str) -> None:
    create_project(site, "taken")
    await user.open("/")
    user.find(marker="new_project").click()
    await user.should_see("new_dialog", retries=PATIENT)
    fill(user, "new_name", name)
    user.find(marker="new_create").click()
    await until(lambda: element(user, "new_problem").text)
    assert names(site) == ["taken"] and user.back_history == ["/"]


async def test_duplicate_and_rename(user: User, site: Site) -> None:
    create_project(site, "one", "sd3-repa-lora")
    await user.open("/")
    await user.should_see("menu_one", retries=PATIENT)
    user.find(marker="menu_one").click()
    user.find(marker="duplicate_one").click()
    await user.should_see("name_dialog", retries=PATIENT)
    assert element(user, "name_input").value == "one 2"
    fill(user, "name_input", "two")
    user.find(marker="name_ok").click()
    await user.should_see("open_two", retries=PATIENT)
    user.find(marker="menu_two").click()
    user.find(marker="rename_two").click()
    await user.should_see("Rename two", retries=PATIENT)
    fill(user, "name_input", "one")
    user.find(marker="name_ok").click()
    await user.should_see("is there already", retries=PATIENT)
    fill(user, "name_input", "three")
    user.find(marker="name_ok").click()
    await user.should_see("open_three", retries=PATIENT)
    assert names(site) == ["one", "three"]


async def test_deleting_names_the_file_and_asks_first(user: User, site: Site) -> None:
    path = create_project(site, "one", "sd3-repa-lora").path
    await user.open("/")
    for answer in ("delete_cancel", "delete_confirm"):
        await user.should_see("menu_one", retries=PATIENT)
        assert path.exists()
        user.find(marker="menu_one").click()
        user.find(marker="delete_one").click()
        await user.should_see(f"Delete {path}?", retries=PATIENT)
        user.find(marker=answer).click()
        await user.should_not_see(f"Delete {path}?", retries=PATIENT)
    await user.should_see("no_projects", retries=PATIENT)
    assert not path.exists()


async def test_in_japanese(user: User, site: Site) -> None:
    create_project(site, "one", "sd3-repa-lora")
    user.http_client.cookies.set(LANGUAGE_COOKIE, "ja")
    await user.open("/")
    await user.should_see("open_one", retries=PATIENT)
    assert user.client is not None and user.client.page.resolve_language() == "ja"
