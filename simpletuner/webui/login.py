"""The token of a server that others can reach: how it is told, compared, and asked for in a form."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address, ip_address

from simpletuner.translation import LANGUAGES, translator
from simpletuner.webui.pages.layout import LANGUAGE_COOKIE, preferred_language

COOKIE = "simpletuner_token"
MOST_FAILURES, WINDOW = 10, 60.0  # different wrong tokens of an address in so many seconds
_MOST_ADDRESSES = 1024
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{8,}")  # what a cookie and a header can hold

_STYLE = (
    ":root{color-scheme:light dark}body{font-family:system-ui,sans-serif;margin:10vh auto;max-width:22rem;"
    "padding:0 1rem}"
    "input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin-top:.5rem}p.wrong{color:#c5221f}"
    "@media (prefers-color-scheme:dark){p.wrong{color:#f28b82}}"
)


def checked_token(token: str) -> str:
    """The token, if it can be one; ``ValueError`` otherwise. It does not show it."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("SIMPLETUNER_TOKEN can be no token: use at least 8 letters, digits and . _ ~ + / = -")
    return token


def same_token(given: str, token: str) -> bool:
    """Whether two tokens are one, in a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


@dataclass
class Failures:
    """Wrong tokens of each address in the last minute; the same one again, as of an old cookie, counts once."""

    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, dict[bytes, float]] = field(default_factory=dict)

    def too_many(self, address: str) -> bool:
        """Whether the address must wait before any token of it is looked at."""
        return len(self._recent(address)) >= MOST_FAILURES

    def add(self, address: str, token: str) -> None:
        """Remember a wrong token."""
        recent = self._recent(address)
        recent[sha256(token.encode("utf-8", "replace")).digest()] = self.clock()
        self._seen.pop(_network(address), None)
        self._seen[_network(address)] = recent
        while len(self._seen) > _MOST_ADDRESSES:
            del self._seen[next(iter(self._seen))]

    def _recent(self, address: str) -> dict[bytes, float]:
        now = self.clock()
        seen = self._seen.get(_network(address), {})
        return {digest: moment for digest, moment in seen.items() if now - moment < WINDOW}


def _network(address: str) -> str:
    """The address itself, but the first half of one of IPv6: its owner has the second."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return parsed.exploded[:19] if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None else str(parsed)


def cookies_of(header: str) -> dict[str, str]:
    """The cookies of a ``Cookie`` header; of what is malformed, none."""
    found: dict[str, str] = {}
    for part in header.split(";"):
        try:
            found |= {name: morsel.value for name, morsel in SimpleCookie(part.strip()).items()}
        except CookieError:
            continue
    return found


def login_page(headers: Mapping[str, str], target: str, *, message: str = "") -> str:
    """A form that asks for the token, in the reader's language and without a script.

    ``target`` is the path to go to afterwards; ``message`` is "wrong", "wait" or nothing.
    """
    language = _language(headers)
    _ = translator(language)
    said = {"wrong": _("This is not the access token."), "wait": _("Too many wrong access tokens. Wait a minute.")}.get(
        message
    )
    told = f'<p class="wrong" role="alert">{escape(said)}</p>' if said else ""
    return _page(
        language,
        f"<h1>SimpleTuner</h1>{told}"
        f'<form method="post" action="/login"><input type="hidden" name="next" value="{escape(target)}">'
        f'<label for="token">{escape(_("Access token"))}</label>'
        '<input id="token" name="token" type="password" required autofocus autocomplete="current-password">'
        f"<button>{escape(_('Sign in'))}</button></form>"
        f"<p>{escape(_('The server printed the access token when it was started.'))}</p>",
    )


def onward_page(headers: Mapping[str, str], target: str) -> str:
    """A page that goes on to ``target``.

    After a link on another site, a redirect would still count as that site's request and lack the new cookie.
    """
    language = _language(headers)
    _ = translator(language)
    there = escape(target)
    return _page(
        language,
        f'<p><a href="{there}">{escape(_("Continue"))}</a></p>',
        f'<meta http-equiv="refresh" content="0;url={there}">',
    )


def _page(language: str, body: str, head: str = "") -> str:
    return (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>SimpleTuner</title>{head}'
        '<link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _language(headers: Mapping[str, str]) -> str:
    chosen = cookies_of(headers.get("cookie", "")).get(LANGUAGE_COOKIE, "")
    return chosen if chosen in LANGUAGES else preferred_language(headers.get("accept-language", ""))
