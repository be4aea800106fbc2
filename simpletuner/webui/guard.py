"""The check in front of the whole server, for HTTP and websockets alike.

It refuses names that are not the server's (DNS rebinding), requests of other sites' pages, and who lacks the token
where one is needed; it bounds bodies and event streams. It is plain ASGI, so nothing behind it can be reached past it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, urlencode

from starlette.types import ASGIApp, Receive, Scope, Send

from simpletuner.webui.exchange import (
    MOST_BODY,
    TOO_LARGE,
    Asked,
    answer,
    asked_of,
    bounded,
    read_body,
    refuse,
    with_headers,
)
from simpletuner.webui.login import COOKIE, Failures, cookies_of, login_page, onward_page, same_token
from simpletuner.webui.pages.layout import local_target

MOST_LOGIN = 2**13  # bytes of its form
MOST_STREAMS, MOST_STREAMS_OF_ONE = 64, 32
LOGIN = "/login"
_SAFE = ("GET", "HEAD", "OPTIONS")
_EVENTS = re.compile(r"/api/v1/runs/[^/]+/events/?")

Refusal = tuple[int, str]
"""Status and reason."""


class Guard:
    """``app`` behind the checks.

    Args:
        hosts: what a ``Host`` header, and an ``Origin`` after its scheme, may be, such as "localhost:7860".
        token: what has to be told; None where everybody who reaches the server may use it.
    """

    def __init__(
        self, app: ASGIApp, hosts: Iterable[str], token: str | None = None, failures: Failures | None = None
    ) -> None:
        self.app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._token = token
        self._failures = Failures() if failures is None else failures
        self._streams: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            if self._refusal_of_websocket(asked_of(scope)) is None:
                await self.app(self._clean(scope), receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._http(scope, receive, with_headers(send))

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_of(scope)
        refusal = self._refusal_of_sender(asked)
        if refusal is None and asked.length > MOST_BODY:
            refusal = 413, TOO_LARGE
        if refusal is not None:
            await refuse(send, asked, *refusal)
        elif self._token is not None and (asked.path, asked.method) == (LOGIN, "POST"):
            await self._login(asked, receive, send)
        elif self._token is None or await self._may_enter(asked, send):
            serve = self._stream if _EVENTS.fullmatch(asked.path) else self._serve
            await serve(asked, self._clean(scope), receive, send)

    def _refusal_of_sender(self, asked: Asked) -> Refusal | None:
        """For requests to another name, or from another site's page, which may only lead to a page of ours."""
        if len(asked.hosts) != 1 or asked.hosts[0] not in self._hosts:
            return 421, "This server is not known by this name. Start it with --allowed-host NAME to change that."
        origin, site = asked.headers.get("origin"), asked.headers.get("sec-fetch-site", "none")
        if origin is not None:
            scheme, _, authority = origin.lower().partition("://")
            own = scheme in ("http", "https") and authority in self._hosts
        elif site in ("same-origin", "none"):
            own = True
        else:
            target = asked.headers.get("sec-fetch-mode"), asked.headers.get("sec-fetch-dest")
            own = asked.method in _SAFE and asked.is_page and target == ("navigate", "document")
        return None if own else (403, "Requests of other sites' pages are refused.")

    def _refusal_of_websocket(self, asked: Asked) -> Refusal | None:
        refusal = self._refusal_of_sender(asked)
        if refusal is not None:
            return refusal
        given = _token_of_header(asked)
        if "origin" not in asked.headers and (self._token is None or given is None):
            return 403, "A websocket needs an Origin, or a token in a header."
        return self._refusal_of_token(asked, _token_of_cookie(asked) if given is None else given)

    def _refusal_of_token(self, asked: Asked, given: str | None) -> Refusal | None:
        if self._token is None:
            return None
        if given is None:
            return 401, "A token is needed: send it as `Authorization: Bearer TOKEN`."
        if self._failures.too_many(asked.address):
            return 429, "Too many wrong tokens. Wait a minute."
        if not same_token(given, self._token):
            self._failures.add(asked.address, given)
            return 401, "The token is wrong."
        return None

    async def _may_enter(self, asked: Asked, send: Send) -> bool:
        """Whether a request has the token; it is answered if not, or if it brings the token in its address."""
        header = _token_of_header(asked)
        target = "/" if asked.path == LOGIN else _address(asked.path, asked.query)
        told = dict(parse_qsl(asked.query)).get("token")
        if told is not None and header is None and asked.is_page:
            await self._take_token(asked, told, target, send)
            return False
        refusal = self._refusal_of_token(asked, _token_of_cookie(asked) if header is None else header)
        if refusal is None and asked.path != LOGIN:
            return True
        if refusal is None:
            await answer(send, 303, "text/plain", "", {"location": target})
        elif asked.is_page:
            await _ask_for_token(send, asked, refusal[0], target)
        else:
            await refuse(send, asked, *refusal)
        return False

    async def _login(self, asked: Asked, receive: Receive, send: Send) -> None:
        body = await read_body(receive, MOST_LOGIN)
        if body is None:
            await refuse(send, asked, 413, "The form is too large.")
            return
        form = dict(parse_qsl(body.decode("utf-8", "replace")))
        await self._take_token(asked, form.get("token", ""), local_target(form.get("next", "/")), send)

    async def _take_token(self, asked: Asked, given: str, target: str, send: Send) -> None:
        """Give the cookie for the right token, and go on to ``target``."""
        refusal = self._refusal_of_token(asked, given)
        if refusal is not None:
            await _ask_for_token(send, asked, refusal[0], target, message="wrong")
            return
        cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if asked.secure else ''}"
        if asked.follows_foreign_link:
            await answer(send, 200, "text/html", onward_page(asked.headers, target), {"set-cookie": cookie})
        else:
            await answer(send, 303, "text/plain", "", {"set-cookie": cookie, "location": target})

    async def _serve(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        await bounded(self.app, scope, receive, send, asked)

    async def _stream(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams.total() >= MOST_STREAMS or self._streams[asked.address] >= MOST_STREAMS_OF_ONE:
            await refuse(send, asked, 503, "Too many event streams are open.", {"retry-after": "5"})
            return
        self._streams[asked.address] += 1
        try:
            await self._serve(asked, scope, receive, send)
        finally:
            self._streams[asked.address] -= 1
            if not self._streams[asked.address]:
                del self._streams[asked.address]

    def _clean(self, scope: Scope) -> Scope:
        """The request as the app sees it: no token in its address, which may end up in a log."""
        if self._token is None or b"token" not in scope["query_string"]:
            return scope
        return {**scope, "query_string": _query_without_token(scope["query_string"].decode("latin-1")).encode()}


def _token_of_header(asked: Asked) -> str | None:
    kind, _, given = asked.headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else asked.headers.get("x-simpletuner-token")


def _token_of_cookie(asked: Asked) -> str | None:
    return cookies_of(asked.headers.get("cookie", "")).get(COOKIE)


def _query_without_token(query: str) -> str:
    return urlencode([(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name != "token"])


def _address(path: str, query: str) -> str:
    """The address of a page without its token; "/" for one that could lead elsewhere."""
    kept = _query_without_token(query)
    return local_target(quote(path, safe="/:@!$&'()*+,;=~") + (f"?{kept}" if kept else ""))


async def _ask_for_token(send: Send, asked: Asked, status: int, target: str, message: str = "") -> None:
    page = login_page(asked.headers, target, message="wait" if status == 429 else message)
    # Under "no-referrer" a browser would send the form with the Origin "null".
    await answer(send, status, "text/html", page, {"referrer-policy": "same-origin"})
