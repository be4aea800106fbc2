"""What all pages share: language, colours, header, and how elements are made findable."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse
from nicegui import ui

from simpletuner.translation import LANGUAGES, translator
from simpletuner.webui.site import Site

LANGUAGE_COOKIE, DARK_COOKIE = "simpletuner_language", "simpletuner_dark"
A_YEAR = 365 * 24 * 3600

# What Quasar and the `lang` attribute call our languages.
_LOCALES = {"en": "en-US", "es": "es", "zh": "zh-CN", "hi": "hi", "ja": "ja"}

# One accent colour, bright on dark and deep on light ground; the fonts of the system, for every script. Quasar marks
# its colours as important in a layer of its own, so ours must stand in an earlier one.
_STYLE = """
body { --q-primary: #1a5fb4 !important; --q-negative: #b3261e !important; --q-positive: #1b7f3b !important;
  --amber: #8a5300; --faint: #5f6368;
  font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, "Noto Sans Devanagari",
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic",
    "Nirmala UI", sans-serif; }
body.body--dark { --q-primary: #8ab4f8 !important; --q-negative: #f2b8b5 !important; --q-positive: #81c995 !important;
  --amber: #fdd663; --faint: #b0b4ba; }
html:lang(ja) body { font-family: system-ui, "Hiragino Sans", "Yu Gothic", "Noto Sans CJK JP", "Noto Sans",
  sans-serif; }
@layer theme {
  .body--dark .bg-primary.text-white, .body--dark .bg-negative.text-white { color: #16181c !important; }
  @media (max-width: 30rem) { .language .block { display: none !important; } }
  .q-btn:focus-visible, .q-toggle:focus-visible { outline: 2px solid var(--q-primary) !important; }
  .header .q-btn:focus-visible { outline-color: currentColor !important; }
}
.faint { color: var(--faint); }
.amber { color: var(--amber); }
.page { width: 100%; max-width: 72rem; margin: 0 auto; padding: 0.75rem; gap: 0.75rem; }
.page .q-btn, .header .q-btn, .q-dialog .q-btn, .q-tab { text-transform: none; }
.header { background: var(--q-primary); color: #fff; padding: 0.25rem 1rem; gap: 0.25rem; }
.body--dark .header { background: #22252b; color: #e8eaed; }
.header a, .header .q-btn { color: inherit; white-space: nowrap; }
@media (max-width: 30rem) {
  .header { padding: 0.25rem 0.5rem; }
  .language .q-icon { margin: 0; }
}
.nicegui-link { color: var(--q-primary); }
.nicegui-content { padding: 0; }
.title-row { position: sticky; top: 2.6rem; z-index: 10; background: #fff; padding: 0.25rem 0; margin: -0.25rem 0; }
.body--dark .title-row { background: var(--q-dark-page); }
.unset .q-field__native { color: var(--faint); }
.page .q-tab-panel { padding: 0.5rem 0; }
.fields { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 0.5rem 1rem;
  width: 100%; align-items: start; }
:focus-visible { outline: 2px solid var(--q-primary); outline-offset: 2px; }
.header :focus-visible { outline-color: currentColor; }
"""

# The address with the preference in question, back to where the reader is now (the tab may have changed since).
_GO = "location.href = '/preferences?{query}&next=' + encodeURIComponent(location.pathname + location.search)"

E = TypeVar("E", bound=ui.element)


@dataclass(frozen=True)
class Look:
    """How a reader wants pages: the language, dark or light (None: as the system), and the words."""

    language: str
    dark: bool | None
    words: Callable[[str], str]


def look_of(request: Request) -> Look:
    """The reader's preferences: from the cookies, or else the language that the browser asks for."""
    language = request.cookies.get(LANGUAGE_COOKIE)
    if language not in LANGUAGES:
        language = preferred_language(request.headers.get("accept-language", ""))
    dark = {"1": True, "0": False}.get(request.cookies.get(DARK_COOKIE, ""))
    return Look(language, dark, translator(language))


def preferred_language(header: str) -> str:
    """The language of ours that an ``Accept-Language`` header ranks highest; English if it names none of them."""
    ranked: list[tuple[float, str]] = []
    for part in header.split(","):
        tag, _, parameters = part.strip().partition(";")
        quality = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", parameters)
        weight = float(quality[1]) if quality else 1.0 if not parameters.strip() else 0.0
        language = tag.partition("-")[0].lower()
        if language in LANGUAGES and weight > 0:
            ranked.append((weight, language))
    return max(ranked, key=lambda entry: entry[0])[1] if ranked else "en"


def tagged(element: E, name: str) -> E:
    """The element, findable as ``name`` by tests: of the page's tree, and in a browser."""
    element.mark(name)
    element.props["data-testid"] = name
    return element


def icon_button(icon: str, label: str, on_click: Callable[..., Any] | None = None) -> ui.button:
    """A small button that is only an icon; ``label`` is what a screen reader says and a pointer shows."""
    button = ui.button(icon=icon, on_click=on_click, color=None).props("flat round dense")
    button.props["aria-label"] = label
    button.props["title"] = label
    return button


@contextmanager
def frame(
    site: Site, request: Request, title: str, *, active: Literal["projects", "runs"] | None = None
) -> Iterator[Look]:
    """The page around its content: the header, and a centred column in which the ``with`` block builds.

    ``title`` is the page's in the browser, in the reader's language. ``active`` is the link that stands for this page.
    """
    look = look_of(request)
    words = look.words
    client = ui.context.client
    client.page = copy.copy(client.page)  # what follows is this reader's alone
    client.page.language = cast(Any, _LOCALES[look.language])
    client.page.dark = look.dark
    client.page.viewport = "width=device-width, initial-scale=1"
    ui.page_title(f"{title} · SimpleTuner" if title else "SimpleTuner")
    ui.add_css(_STYLE)
    with ui.header().classes("header items-center no-wrap"):
        ui.link("SimpleTuner", "/").classes("text-weight-bold no-underline q-mr-sm")
        with ui.element("nav").classes("row no-wrap").props(f'aria-label="{words("Pages")}"'):
            _page_link(words("Projects"), "/", "nav_projects", current=active == "projects")
            _page_link(words("Runs"), "/runs", "nav_runs", current=active == "runs")
        ui.space()
        _language_menu(look)
        dark = tagged(icon_button("contrast", words("Dark or light")), "dark_switch")
        shown = "document.body.classList.contains('body--dark') ? 0 : 1"
        dark.on("click", js_handler="() => { " + _GO.replace("{query}", f"dark=' + ({shown}) + '") + " }")
    with ui.column().classes("page"):
        yield look


def _page_link(text: str, target: str, name: str, *, current: bool) -> None:
    link = tagged(ui.link(text, target), name).classes("q-px-sm q-py-xs")
    link.classes("text-weight-bold" if current else "no-underline")
    if current:
        link.props["aria-current"] = "page"


def _language_menu(look: Look) -> None:
    button = tagged(ui.button(LANGUAGES[look.language], icon="translate", color=None), "language_menu")
    button.props("flat dense no-wrap").classes("language")
    button.props["aria-label"] = look.words("Language")
    with button, ui.menu():
        for language, name in LANGUAGES.items():
            item = tagged(ui.menu_item(name), f"language_{language}")
            item.props["lang"] = language
            item.on("click", js_handler="() => { " + _GO.replace("{query}", urlencode({"language": language})) + " }")


def add_preferences(app: FastAPI) -> None:
    """``GET /preferences?language=&dark=&next=`` keeps what is given in cookies, and goes on to a path of ours."""

    @app.get("/preferences", include_in_schema=False)
    def preferences(
        language: str | None = None, dark: str | None = None, next_path: str = Query("/", alias="next")
    ) -> Response:
        response = RedirectResponse(local_target(next_path), status_code=303)
        chosen = {
            LANGUAGE_COOKIE: language if language in LANGUAGES else None,
            DARK_COOKIE: dark if dark in ("0", "1") else None,
        }
        for cookie, value in chosen.items():
            if value is not None:
                response.set_cookie(cookie, value, max_age=A_YEAR, path="/", samesite="lax")
        return response


def local_target(target: str) -> str:
    """The target if it is a path of this server, "/" if it leads elsewhere (``//host``, ``/\\host``, a scheme)."""
    plain = not re.search(r"[\x00-\x20\\\x7f]", target)
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    leads_here = target.startswith("/") and not target.startswith("//") and not parts.scheme and not parts.netloc
    return target if plain and leads_here else "/"
