"""Fields made from the facts of options: what is typed becomes the value that the file should have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nicegui import ui
from nicegui.testing import User

from simpletuner.configuration.checks import check_values
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.configuration.fields import OptionInfo, describe_all
from simpletuner.configuration.problems import Problem, warning
from simpletuner.translation import translator
from simpletuner.webui.draft import OPTIONS
from simpletuner.webui.pages.fields import FieldView, default_text, text_of, value_of
from simpletuner.webui.pages.layout import Look
from tests.webui.pages.looking import element
from tests.webui.pages.person import fill, problems_beside

LOOK = Look("en", None, translator("en"))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", " 42 ", 42),
        ("seed", "1.5", 1.5),
        ("seed", "many", "many"),
        ("seed", "", None),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1", 1),
        ("learning_rate", "1e400", "1e400"),
        ("crepa_encoder_image_size", "nan", "nan"),
        ("crepa_encoder_image_size", "auto", "auto"),
        ("crepa_encoder_image_size", "224", 224),
        ("validation_prompt", "a cat ", "a cat "),
        ("peft_lora_target_modules", "to_q, to_out.0,, conv1", ["to_q", "to_out.0", "conv1"]),
        ("peft_lora_target_modules", "1, 2", ["1", "2"]),
        ("evaluation_guidance_interval", "[0, 0.7]", [0, 0.7]),
        ("evaluation_guidance_interval", "0, much", [0, "much"]),
        ("validation_seed", "9223372036854775807", 2**63 - 1),
    ],
)
def test_what_a_text_stands_for(name: str, text: str, value: Any) -> None:
    found = value_of(OPTIONS[name], text)
    assert found == value and type(found) is type(value)


@given(st.one_of(st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_come_back_as_they_were(number: float) -> None:
    assert value_of(OPTIONS["learning_rate"], text_of(number)) == number


def test_texts_of_values() -> None:
    assert [text_of(value) for value in (None, True, 5.0, 1e-8, ["a", 0.5], {"a": 1})] == [
        "", "true", "5", "1e-08", "a, 0.5", '{"a": 1}'
    ]  # fmt: skip


def test_the_default_stands_in_an_empty_field() -> None:
    texts = {name: default_text(OPTIONS[name], LOOK) for name in ("seed", "lora_alpha", "model_family", "use_ema")}
    assert texts == {"seed": "42", "lora_alpha": "default", "model_family": "", "use_ema": "off"}


@pytest.fixture
async def changes(user: User) -> list[tuple[str, Any]]:
    """A page with a field for every option there is; what its fields report."""
    reported: list[tuple[str, Any]] = []

    @ui.page("/fields")
    def page() -> None:
        infos = [*OPTIONS.values(), *describe_all(DatasetEntry), *describe_all(VideoOptions)]
        page.fields = {}  # type: ignore[attr-defined]
        for info in infos:
            if info.name not in page.fields and info.type != "object":  # type: ignore[attr-defined]
                field = FieldView(info, LOOK, lambda name, value: reported.append((name, value)))
                page.fields[info.name] = field  # type: ignore[attr-defined]

    await user.open("/fields")
    FIELDS.clear()
    FIELDS.update(page.fields)  # type: ignore[attr-defined]
    return reported


FIELDS: dict[str, FieldView] = {}


def kind_of(info: OptionInfo) -> type[ui.element]:
    if info.type == "boolean":
        return ui.switch
    return ui.select if info.choices else ui.input


async def test_every_option_has_the_field_of_its_kind(user: User, changes: list[tuple[str, Any]]) -> None:
    for name, field in FIELDS.items():
        info = field.info
        assert type(field.element) is kind_of(info), name
        assert element(user, f"help_{name}").props["aria-label"] == f"Help: {info.label}"
        if info.type in ("integer", "number") and not info.keywords:
            props = field.element.props
            assert props["type"] == "number"
            assert (props.get("min"), props.get("max")) == tuple(
                None if bound is None else text_of(bound) for bound in (info.minimum, info.maximum)
            )
    assert FIELDS["crepa_encoder_image_size"].element.props["type"] == "text"
    assert FIELDS["urepa_align_layers"].element.multiple


async def test_showing_a_value_reports_nothing_and_typing_does(user: User, changes: list[tuple[str, Any]]) -> None:
    values = {"seed": 7, "use_ema": True, "optimizer": "sgd", "urepa_align_layers": ["mid"], "learning_rate": "much"}
    with user:
        for name, value in values.items():
            FIELDS[name].show(value)
    assert not changes
    assert [FIELDS[name].element.value for name in values] == ["7", True, "sgd", ["mid"], "much"]
    fill(user, "seed", "8")
    fill(user, "seed", "")
    fill(user, "use_ema", False)
    fill(user, "optimizer", "adam")
    fill(user, "optimizer", None)
    fill(user, "urepa_align_layers", ["mid", "enc_last"])
    fill(user, "urepa_align_layers", [])
    assert changes == [
        ("seed", 8),
        ("seed", None),
        ("use_ema", False),
        ("optimizer", "adam"),
        ("optimizer", None),
        ("urepa_align_layers", ["mid", "enc_last"]),
        ("urepa_align_layers", None),
    ]


async def test_a_value_that_is_no_choice_can_be_seen(user: User, changes: list[tuple[str, Any]]) -> None:
    field = FIELDS["optimizer"]
    with user:
        field.show("lion")
    assert field.element.value == "lion"
    with user:
        field.show(None)
    assert field.element.value is None and field.element.props["display-value"] == "adamw"
    with user:
        field.show(["no", "text"])
    assert field.element.value == "no, text"
    assert not changes


async def test_what_somebody_types_is_not_rewritten(user: User, changes: list[tuple[str, Any]]) -> None:
    """The text 1e-4 is the value 0.0001: showing that again must not move the cursor."""
    fill(user, "learning_rate", "1e-4")
    with user:
        FIELDS["learning_rate"].show(changes[-1][1])
    assert FIELDS["learning_rate"].element.value == "1e-4"


async def test_what_a_browser_takes_for_no_number_is_not_taken_for_the_default(
    user: User, changes: list[tuple[str, Any]]
) -> None:
    """An input of numbers says that it is empty while "1e" stands in it."""
    field = FIELDS["learning_rate"]
    fill(user, "learning_rate", "1")
    fill(user, "learning_rate", "")
    user.find(marker="learning_rate").trigger("keyup", True)
    assert changes == [("learning_rate", 1), ("learning_rate", None), ("learning_rate", "")]
    assert "learning_rate" in {problem.option for problem in check_values({"learning_rate": ""}, {})[1]}
    fill(user, "learning_rate", "1e-4")
    user.find(marker="learning_rate").trigger("keyup", False)
    assert changes[-1] == ("learning_rate", 1e-4)
    user.find(marker="learning_rate").trigger("blur", True)
    with user:
        field.show(None)  # as after a reload: what stands there goes
    assert field.element.value == "" and changes[-1] == ("learning_rate", "")


async def test_problems_are_told_beneath_with_their_mend(user: User, changes: list[tuple[str, Any]]) -> None:
    field = FIELDS["seed"]
    with user:
        field.show_problems([Problem("seed", "is odd", "Use an even one."), warning("seed", "is low", "Raise it.")])
    assert problems_beside(user, "seed") == ["is odd. Use an even one.", "is low. Raise it."]
    assert field.element.props["aria-invalid"] == "true" and field.element.props["error"]
    assert "aria-describedby" in field.element.props
    with user:
        field.show_problems([warning("seed", "is low", "Raise it.")])
    assert field.element.props["aria-invalid"] == "false" and "error" not in field.element.props
    with user:
        field.show_problems([])
    assert problems_beside(user, "seed") == [] and "aria-describedby" not in field.element.props


async def test_help_is_unfolded_by_its_button(user: User, changes: list[tuple[str, Any]]) -> None:
    help_text = OPTIONS["seed"].help
    await user.should_not_see(help_text)
    user.find(marker="help_seed").click()
    await user.should_see(help_text)
    assert element(user, "help_seed").props["aria-expanded"] == "true"
    user.find(marker="help_seed").click()
    await user.should_not_see(help_text)
    assert json.loads(element(user, "help_seed").props["aria-expanded"]) is False
