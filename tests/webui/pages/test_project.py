"""The page of a project: forms, problems, tabs, and saving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nicegui import ui
from nicegui.testing import User, UserInteraction

from simpletuner.configuration.checks import check_config_file
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.draft import OPTIONS
from simpletuner.webui.pages.layout import LANGUAGE_COOKIE
from simpletuner.webui.pages.problem_list import problem_summary
from simpletuner.webui.site import Site
from tests.webui.pages.looking import PATIENT, element, until
from tests.webui.pages.person import content, fill, open_project, problems_beside, seen


async def test_every_option_has_a_field_and_every_field_a_tab(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    assert user.client is not None
    marks = [mark for item in user.client.elements.values() for mark in item._markers]
    for name in OPTIONS:
        assert marks.count(name) == 1, name


async def test_a_field_is_edited_checked_and_saved(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    before = content(path)
    assert element(user, "lora_rank").value == "16" and not seen(user, "unsaved")
    fill(user, "lora_rank", "0")
    assert seen(user, "unsaved")
    await until(lambda: problems_beside(user, "lora_rank"))
    (told,) = problems_beside(user, "lora_rank")
    assert told.startswith("0 is not a whole number of at least 1. Correct it")
    assert element(user, "problems").text == "2 errors"  # the pictures of the example aren't there either
    fill(user, "lora_rank", "32")
    await until(lambda: not problems_beside(user, "lora_rank"))
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    assert content(path) == before | {"lora_rank": 32}
    assert list(content(path)) == list(before)
    await user.should_see("Saved.")


async def test_an_empty_field_leaves_the_option_out(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    for name in ("lora_rank", "train_batch_size"):
        fill(user, name, "")
    fill(user, "mixed_precision", None)
    assert element(user, "mixed_precision").props["display-value"] == "bf16"
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    assert not {"lora_rank", "train_batch_size", "mixed_precision"} & set(content(path))


async def test_a_switch_that_goes_back_to_its_default_leaves_no_trace(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    fill(user, "use_ema", True)
    assert seen(user, "unsaved")
    fill(user, "use_ema", False)
    assert not seen(user, "unsaved")
    fill(user, "gradient_checkpointing", False)  # the file says true: now it says false
    assert '"gradient_checkpointing": false' in element(user, "json_editor").value


async def test_fields_come_and_go_with_what_they_depend_on(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    assert seen(user, "field_lora_rank") and not seen(user, "field_train_from_scratch")
    fill(user, "model_type", "full")
    await until(lambda: seen(user, "field_train_from_scratch"))
    assert not seen(user, "LoRA")  # the heading of a section without fields
    assert seen(user, "field_validation_guidance")
    fill(user, "validation_prompt", "")
    await until(lambda: not seen(user, "field_validation_guidance"))
    assert not seen(user, "field_ema_decay")
    fill(user, "use_ema", True)
    await until(lambda: seen(user, "field_ema_decay"))


async def test_a_problem_leads_to_its_field_even_if_that_has_no_effect(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    fill(user, "lora_rank", "4")
    fill(user, "model_type", "full")
    await until(lambda: problems_beside(user, "lora_rank"))
    assert not seen(user, "field_lora_rank")
    assert not seen(user, "problem_list")
    listed = _listed(user)
    assert seen(user, "problem_list")
    _press(user, next(item for item in listed if "lora_rank" in _texts(item)))
    assert seen(user, "field_lora_rank") and element(user, "tab_model").tabs.value == "model"
    fill(user, "lora_rank", "")
    await until(lambda: not problems_beside(user, "lora_rank"))


def _listed(user: User) -> list[ui.item]:
    """Unfolds the list of problems."""
    user.find(marker="problems").click()
    return list(user.find(kind=ui.item, marker="listed_problem").elements)


def _texts(item: ui.item) -> list[str]:
    return [getattr(part, "text", "") for part in item.descendants()]


def _press(user: User, item: ui.item) -> None:
    UserInteraction(user, {item}, None).click()


async def test_what_no_field_is_about_leads_to_the_text(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    path.write_text(json.dumps(content(path) | {"lora_rnak": 4}))
    await user.open("/projects/one")
    page = next(item for item in _listed(user) if "lora_rnak" in _texts(item))
    assert any('Did you mean "lora_rank"?' in text for text in _texts(page))
    _press(user, page)
    assert element(user, "tab_json").tabs.value == "json"


async def test_the_problems_are_those_of_the_check(user: User, site: Site) -> None:
    path = await open_project(user, site, None)
    values = {"model_family": "sdxl", "crepa_enabled": True, "resolution": 1000, "lora_alpha": -1, "nothing": 1}
    path.write_text(json.dumps(content(path) | values))
    await user.open("/projects/one")
    expected = check_config_file(path, [], FAMILIES)[1]
    shown = {text for item in _listed(user) for text in _texts(item)}
    assert {f"{problem.message}. {problem.mend}" for problem in expected} <= shown
    for problem in expected:
        if problem.option in OPTIONS:
            assert f"{problem.message}. {problem.mend}" in problems_beside(user, problem.option)


@pytest.mark.parametrize(
    ("errors", "warnings", "text"),
    [(0, 0, "No problems"), (1, 0, "1 error"), (3, 1, "3 errors, 1 warning"), (0, 2, "2 warnings")],
)
def test_how_many_problems(errors: int, warnings: int, text: str) -> None:
    assert problem_summary(errors, warnings, str) == text


async def test_the_family_has_a_list_and_sets_nothing_else(user: User, site: Site) -> None:
    path = await open_project(user, site, None)
    before = content(path)
    assert set(FAMILIES) == set(element(user, "model_family").options)
    assert element(user, "model_family").options["wan"] == "wan (video, CREPA)"
    fill(user, "model_family", "wan")
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    assert content(path) == before | {"model_family": "wan"}


async def test_the_tab_is_in_the_address(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="losses")
    assert element(user, "tab_training").tabs.value == "training"
    assert element(user, "tab_losses").tabs.value == "losses"
    await user.open("/projects/one?tab=training")
    assert element(user, "tab_losses").tabs.value == "optimisation"
    await user.open("/projects/one?tab=nonsense")
    assert element(user, "tab_basic").tabs.value == "basic"
    sent: list[str] = []
    user.javascript_rules = {}
    assert user.client is not None
    run = user.client.run_javascript
    user.client.run_javascript = lambda code, **how: (sent.append(code), run(code, **how))[1]  # type: ignore[method-assign]
    user.find(marker="tab_training").click()
    user.find(marker="tab_losses").click()
    addresses = [code for code in sent if "replaceState" in code]
    assert "/projects/one?tab=training" in addresses[0] and "/projects/one?tab=losses" in addresses[-1]


async def test_a_project_that_is_not_there(user: User, site: Site, tmp_path: Path) -> None:
    (site.configs / "list.json").write_text("[]")
    for name in ("none", "list", "%2e%2e"):
        await user.open(f"/projects/{name}")
        await user.should_see("project_problem")


async def test_in_spanish(user: User, site: Site) -> None:
    user.http_client.cookies.set(LANGUAGE_COOKIE, "es")
    await open_project(user, site, "sd3-repa-lora")
    assert element(user, "save").text == "Guardar"
    assert element(user, "seed").label == "Semilla"
    assert element(user, "tab_data").label == "Datos"
    fill(user, "lora_rank", "0")
    await until(lambda: problems_beside(user, "lora_rank"))


async def test_run_options_and_the_run_panel_are_in_the_run_tab(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="run")
    for name in ("checkpoint_step_interval", "report_to", "run_start"):
        await user.should_see(name, retries=PATIENT)
