"""Keys and passwords are hidden, come back unharmed, and are in no log."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import DatasetEntry
from simpletuner.webui.secrets import MASK, hide, looks_secret, redact, restore

VALUES: dict[str, Any] = {
    "model_family": "sd3",
    "wandb_api_key": "0123456789",
    "hub_token": "hf_abcdefgh",
    "empty_token": "",
    "no_token": None,
    "webhook": {"url": "https://user:secret@host/hook", "credentials": {"user": "u", "pin": 1234}},
    "data": [{"id": "a", "aws_secret_access_key": "AAA"}, {"id": "b", "aws_secret_access_key": "BBB"}],
}


def test_secrets_are_hidden_and_nothing_else() -> None:
    hidden = hide(VALUES)
    assert hidden["wandb_api_key"] == hidden["hub_token"] == MASK
    assert hidden["webhook"] == {"url": MASK, "credentials": {"user": MASK, "pin": MASK}}
    assert [entry["aws_secret_access_key"] for entry in hidden["data"]] == [MASK, MASK]
    assert hidden["model_family"] == "sd3" and hidden["empty_token"] == "" and hidden["no_token"] is None
    for secret in ("0123456789", "hf_abcdefgh", "secret@", "1234", "AAA"):
        assert secret not in str(hidden)


def test_what_is_hidden_comes_back() -> None:
    assert restore(hide(VALUES), VALUES) == VALUES


def test_entries_are_known_by_their_names() -> None:
    reordered = [*hide(VALUES["data"])[::-1], {"id": "new", "aws_secret_access_key": MASK}]
    assert restore(reordered, VALUES["data"]) == [*VALUES["data"][::-1], {"id": "new"}]


def test_of_entries_of_one_name_the_first_is_meant() -> None:
    twice = [{"id": "a", "token": "1"}, {"id": "a", "token": "2"}, {"id": 3, "token": "4"}, {"id": [5], "token": "6"}]
    assert restore(hide(twice), twice) == [twice[0], twice[0], twice[2], twice[3]]
    assert restore(hide(twice[2:]), twice) == [twice[2], {"id": [5], "token": "2"}]


def test_many_entries_take_no_time() -> None:
    """Not the square of their number: all other changes of files wait meanwhile."""
    many = [{"id": str(number), "token": "t"} for number in range(50_000)]
    began = time.process_time()
    assert restore(hide(many), many) == many
    assert time.process_time() - began < 20


def test_a_mask_is_never_stored() -> None:
    assert restore({"hub_token": MASK, "list": [MASK, 1], "in": {"token": MASK}}, {}) == {"list": [1], "in": {}}
    assert restore({"hub_token": "another"}, {"hub_token": "old"}) == {"hub_token": "another"}


@pytest.mark.parametrize("name", ["hub_token", "HF_TOKEN", "--wandb-api-key", "apiKey", "accessToken", "Password"])
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["crepa_token_resample", "max_tokens", "tokenizer_max_length", "keyboard", "monkey"])
def test_names_that_only_sound_so(name: str) -> None:
    assert not looks_secret(name)


def test_no_option_is_hidden() -> None:
    values = dict.fromkeys((*Config.model_fields, *DatasetEntry.model_fields), "text")
    assert hide(values) == values


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "token", "password"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["x", "api_key", "nested"]), _JSON, max_size=3))
def test_hiding_and_restoring_change_nothing(values: dict[str, Any]) -> None:
    assert restore(hide(values), values) == values


def test_secrets_of_the_environment_are_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef-123456")
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("SIMPLETUNER_TOKEN", "abcdef-123456-and-more")
    text = redact("key abcdef-123456, token abcdef-123456-and-more, a short word")
    assert text == f"key {MASK}, token {MASK}, a short word"


@pytest.mark.parametrize(
    "text, secret",
    [
        ("hub_token=verysecret", "verysecret"),
        ('{"wandb_api_key": "verysecret", "a": 1}', "verysecret"),
        ("simpletuner train --hub_token verysecret --seed 1", "verysecret"),
        ("GET /?token=verysecret&x=1", "verysecret"),
        ("Authorization: Bearer verysecret", "verysecret"),
        ("push to https://user:verysecret@host/x failed", "verysecret"),
        ("used hf_ABCDEFGHIJKLMNOPQRST here", "hf_ABCDEFGHIJKLMNOPQRST"),
        ("password: verysecret", "verysecret"),
    ],
)
def test_secrets_in_a_log_are_redacted(text: str, secret: str) -> None:
    assert secret not in redact(text) and MASK in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "step 10 loss=0.123 tokens: 256",
        "crepa_token_resample=smaller",
        "the token is wrong",
        "https://example.org:8080/path@x",
        "max_tokens=512 key=value",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text
