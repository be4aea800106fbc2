"""What happens to a page whose file somebody else changes."""

from __future__ import annotations

import json

import pytest
from nicegui.testing import User

from simpletuner.webui.pages import saving
from simpletuner.webui.site import Site
from tests.webui.pages.looking import PATIENT, element, until
from tests.webui.pages.person import content, fill, open_project, seen


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "POLL", 0.05)


async def test_two_pages_of_one_project_the_second_save_conflicts(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    first = user.client
    await user.open("/projects/one")
    fill(user, "seed", "2")
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    assert content(path)["seed"] == 2
    user.client = first
    fill(user, "seed", "1")
    user.find(marker="save").click()
    await user.should_see("conflict_overwrite", retries=PATIENT)
    user.find(marker="conflict_cancel").click()
    await user.should_not_see("conflict", retries=PATIENT)
    assert content(path)["seed"] == 2 and seen(user, "unsaved")
    user.find(marker="save").click()
    await user.should_see("conflict_overwrite", retries=PATIENT)
    user.find(marker="conflict_overwrite").click()
    await until(lambda: content(path)["seed"] == 1)
    await until(lambda: not seen(user, "unsaved"))
    fill(user, "seed", "3")  # the version is known again
    user.find(marker="save").click()
    await until(lambda: content(path)["seed"] == 3)


async def test_a_conflict_can_be_ended_by_reading_the_file_again(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    fill(user, "seed", "1")
    path.write_text(json.dumps(content(path) | {"seed": 5, "resolution": 512}))
    user.find(marker="save").click()
    await user.should_see("conflict_reload", retries=PATIENT)
    user.find(marker="conflict_reload").click()
    await until(lambda: element(user, "seed").value == "5")
    assert element(user, "resolution").value == "512" and not seen(user, "unsaved")
    assert '"seed": 5' in element(user, "json_editor").value
    assert content(path)["seed"] == 5


async def test_a_change_on_disk_is_told_and_can_be_taken(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    path.write_text(json.dumps(content(path) | {"seed": 9}))
    await user.should_see("changed_on_disk", retries=PATIENT)
    await user.should_see("The file changed on disk.")
    user.find(marker="reload").click()
    await until(lambda: element(user, "seed").value == "9")
    assert not seen(user, "changed_on_disk")


async def test_a_file_that_is_gone_is_told_and_comes_back_by_overwriting(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    path.unlink()
    await user.should_see("deleted or renamed", retries=PATIENT)
    fill(user, "seed", "1")
    user.find(marker="save").click()
    await user.should_see("conflict_overwrite", retries=PATIENT)
    user.find(marker="conflict_overwrite").click()
    await until(path.exists)
    await until(lambda: not seen(user, "changed_on_disk"))


async def test_what_can_not_be_written_is_said(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    path.unlink()
    path.mkdir()
    fill(user, "seed", "1")
    user.find(marker="save").click()
    await user.should_see("one.json", retries=PATIENT)
    assert seen(user, "unsaved")


async def test_a_browser_is_told_to_ask_before_it_leaves(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    assert user.client is not None
    sent: list[str] = []
    run = user.client.run_javascript
    user.client.run_javascript = lambda code, **how: (sent.append(code), run(code, **how))[1]  # type: ignore[method-assign]
    fill(user, "seed", "1")
    fill(user, "seed", "2")
    fill(user, "seed", "")
    asks = [code for code in sent if "onbeforeunload" in code]
    assert len(asks) == 2 and "preventDefault" in asks[0] and "null" in asks[1]
