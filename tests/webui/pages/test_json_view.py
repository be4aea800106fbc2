"""The file as text, both ways."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nicegui.testing import User

from simpletuner.webui.pages.json_view import BadText, text_of_values, values_of_text
from simpletuner.webui.secrets import MASK
from simpletuner.webui.site import Site
from tests.webui.pages.looking import element, until
from tests.webui.pages.person import content, fill, open_project, problems_beside, seen


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name[0] != "-"), st.integers() | st.none()))
def test_values_come_back_from_their_text(values: dict[str, int | None]) -> None:
    small = {name: value for name, value in values.items() if value is None or abs(value) < 2**63}
    assert values_of_text(json.dumps(small)) == small


def test_names_may_have_dashes_before_them() -> None:
    assert values_of_text('{"--seed": 1}') == {"seed": 1}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{\n "seed": 1,\n}', 2, "trailing comma"),
        ('{\n "seed": 1\n "a": 2}', 3, "Expecting ','"),
        ('{\n "seed": 1,\n "seed": 2\n}', 3, "'seed' stands more than once"),
        ("[1]", 1, "write {"),
        ("", 1, "Expecting value"),
        ("[" * 100_000, None, "deeply"),
    ],
)
def test_what_is_no_object_says_where(text: str, line: int | None, words: str) -> None:
    with pytest.raises(BadText) as caught:
        values_of_text(text)
    if "comma" not in words:  # newer Pythons say it in other words
        assert words in str(caught.value)
        assert caught.value.line == line


def test_secrets_are_masked() -> None:
    assert MASK in text_of_values({"hub_token": "abc", "seed": 1}) and "abc" not in text_of_values({"hub_token": "abc"})


async def test_the_forms_follow_the_text(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora", tab="json")
    values = content(path) | {"seed": 5, "crepa_enabled": False, "report_to": "none"}
    del values["lora_rank"]
    fill(user, "json_editor", json.dumps(values))
    assert (element(user, "seed").value, element(user, "crepa_enabled").value) == ("5", False)
    assert element(user, "report_to").value == "none" and element(user, "lora_rank").value == ""
    assert element(user, "json_editor").value == json.dumps(values)  # as it was typed
    await until(lambda: not seen(user, "field_crepa_lambda"))
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    assert content(path) == values


async def test_the_text_follows_the_forms(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora")
    fill(user, "seed", "5")
    assert values_of_text(element(user, "json_editor").value)["seed"] == 5
    fill(user, "seed", "")
    assert "seed" not in values_of_text(element(user, "json_editor").value)


async def test_a_broken_text_says_its_line_and_changes_nothing(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora", tab="json")
    before = element(user, "json_editor").value
    fill(user, "json_editor", '{\n  "seed": 5,\n  "resolution": \n}')
    assert seen(user, "json_problem")
    assert element(user, "json_problem").text.startswith("Not taken over: line 4, column 1")
    assert element(user, "seed").value == ""
    fill(user, "json_editor", before)
    assert not seen(user, "json_problem")
    assert content(path) == values_of_text(before)


async def test_a_broken_text_counts_as_unsaved_and_is_not_passed_over_in_saving(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora", tab="json")
    before = content(path)
    fill(user, "seed", "3")
    fill(user, "json_editor", element(user, "json_editor").value + ",")
    assert seen(user, "unsaved")
    user.find(marker="save").click()
    await user.should_see("Not saved: first correct the text on the JSON tab.")
    assert content(path) == before
    fill(user, "json_editor", element(user, "json_editor").value.removesuffix(","))
    user.find(marker="save").click()
    await until(lambda: content(path) == before | {"seed": 3})
    fill(user, "json_editor", "{")
    assert seen(user, "unsaved")
    fill(user, "json_editor", text_of_values(before | {"seed": 3}))
    assert not seen(user, "unsaved")


async def test_secrets_are_hidden_and_kept(user: User, site: Site) -> None:
    path = await open_project(user, site, "sd3-repa-lora")
    path.write_text(json.dumps(content(path) | {"hub_token": "the secret"}))
    await user.open("/projects/one?tab=json")
    text = element(user, "json_editor").value
    assert "the secret" not in text and MASK in text
    await user.should_not_see("the secret")
    fill(user, "json_editor", text.replace('"seed"', '"seed"').replace("{", '{"seed": 8,', 1))
    user.find(marker="save").click()
    await until(lambda: content(path).get("seed") == 8)
    assert content(path)["hub_token"] == "the secret"
    fill(user, "json_editor", element(user, "json_editor").value.replace(MASK, "another"))
    user.find(marker="save").click()
    await until(lambda: content(path)["hub_token"] == "another")


async def test_what_is_wrong_in_the_text_is_told_beside_the_field(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="json")
    text = element(user, "json_editor").value
    fill(user, "json_editor", text.replace('"lora_rank": 16', '"lora_rank": "many"'))
    await until(lambda: problems_beside(user, "lora_rank"))
    assert element(user, "lora_rank").value == "many"
