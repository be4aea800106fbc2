"""Language, colours and the way back: what all pages share."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from nicegui.testing import User

from simpletuner.translation import LANGUAGES
from simpletuner.webui.pages.layout import (
    DARK_COOKIE,
    LANGUAGE_COOKIE,
    add_preferences,
    local_target,
    preferred_language,
)
from tests.webui.pages.looking import PATIENT, element


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("es-MX,es;q=0.9,en;q=0.8", "es"),
        ("fr-FR,fr;q=0.9,ja;q=0.5,en;q=0.4", "ja"),
        ("zh-Hant-TW", "zh"),
        ("en;q=0.1, hi;q=0.2", "hi"),
        ("es;q=0, de", "en"),
        ("es;q=nonsense", "en"),
        ("*", "en"),
    ],
)
def test_the_language_that_a_browser_asks_for(header: str, language: str) -> None:
    assert preferred_language(header) == language


@given(st.text())
def test_any_header_gives_a_language(header: str) -> None:
    assert preferred_language(header) in LANGUAGES


@pytest.mark.parametrize("target", ["/", "/projects/a%20b?tab=losses", "/runs#top", "/compare?runs=a,b"])
def test_ways_back_on_this_server(target: str) -> None:
    assert local_target(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "projects",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/a\r\nSet-Cookie: b=c",
        "//[",
    ],
)
def test_ways_to_elsewhere_are_refused(target: str) -> None:
    assert local_target(target) == "/"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    add_preferences(app)
    return TestClient(app, follow_redirects=False)


def test_preferences_are_kept_in_cookies(client: TestClient) -> None:
    answer = client.get("/preferences", params={"language": "ja", "dark": "1", "next": "/projects/a?tab=run"})
    assert answer.status_code == 303 and answer.headers["location"] == "/projects/a?tab=run"
    assert answer.cookies[LANGUAGE_COOKIE] == "ja" and answer.cookies[DARK_COOKIE] == "1"
    for cookie in answer.headers.get_list("set-cookie"):
        assert "samesite=lax" in cookie.lower() and "path=/;" in cookie.lower()


def test_preferences_that_do_not_exist_change_nothing(client: TestClient) -> None:
    answer = client.get("/preferences", params={"language": "xx", "dark": "2", "next": "https://evil.example"})
    assert answer.headers["location"] == "/" and not answer.cookies


async def test_a_page_follows_the_readers_preferences(user: User) -> None:
    user.http_client.cookies.set(LANGUAGE_COOKIE, "es")
    user.http_client.cookies.set(DARK_COOKIE, "1")
    await user.open("/")
    await user.should_see("Español", retries=PATIENT)
    assert user.client is not None
    assert user.client.page.resolve_language() == "es" and user.client.page.resolve_dark() is True
    await user.http_client.get("/")  # another reader's page is another page
    user.http_client.cookies.clear()
    await user.open("/")
    assert user.client.page.resolve_language() == "en-US" and user.client.page.resolve_dark() is None


async def test_the_header_leads_to_the_pages(user: User) -> None:
    await user.open("/")
    assert element(user, "nav_projects").props["aria-current"] == "page"
    assert element(user, "nav_runs").props["href"] == "/runs"
    assert {f"language_{language}" for language in LANGUAGES} <= {
        mark
        for item in user.client.elements.values()
        for mark in item._markers  # type: ignore[union-attr]
    }
