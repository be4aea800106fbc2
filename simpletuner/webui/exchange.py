"""One HTTP exchange as plain ASGI: what a request says of itself, and answers that need no app."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY = 2**21  # bytes
TOO_LARGE = f"The request is larger than {MOST_BODY // 2**20} MiB."
_NO_PAGES = ("/api/", "/_nicegui")
# Beside frames, which nobody may put around a page: all that a page loads comes from this server.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "x-frame-options": "DENY",
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Asked:
    """What a request says of itself; ``hosts`` are its Host headers, of which there should be one."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    hosts: Sequence[str]
    address: str
    secure: bool

    @property
    def is_page(self) -> bool:
        """Whether it asks for what a browser shows by itself."""
        return self.method in ("GET", "HEAD") and not self.path.startswith(_NO_PAGES)

    @property
    def length(self) -> int:
        """The stated size of the body in bytes; too large a one if it is stated badly."""
        stated = self.headers.get("content-length", "0")
        return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else MOST_BODY + 1

    @property
    def follows_foreign_link(self) -> bool:
        """Whether a page of another site led here."""
        site, referrer = self.headers.get("sec-fetch-site"), self.headers.get("referer")
        if site is not None:
            return site not in ("same-origin", "none")
        return referrer is not None and urlsplit(referrer).netloc.lower() not in self.hosts


def asked_of(scope: Scope) -> Asked:
    """What a request or a websocket's handshake says; repeated headers are joined."""
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    headers: dict[str, str] = {}
    for name, value in pairs:
        joint = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{joint}{value}" if name in headers else value
    client = scope.get("client")
    return Asked(
        method=scope.get("method", "GET"),
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        hosts=[value.strip().lower() for name, value in pairs if name == "host"],
        address=client[0] if client else "",
        secure=scope.get("scheme") in ("https", "wss"),
    )


async def answer(send: Send, status: int, kind: str, text: str, headers: Mapping[str, str] | None = None) -> None:
    """Send a whole answer of the media type ``kind``."""
    body = text.encode()
    fixed = {"content-type": f"{kind}; charset=utf-8", "content-length": str(len(body)), "cache-control": "no-store"}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (fixed | {**(headers or {})}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, asked: Asked, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
    """Send why a request is refused: in JSON to users of the API."""
    more = {"connection": "close"} if status == 413 else {"www-authenticate": "Bearer"} if status == 401 else {}
    more |= headers or {}
    if asked.path.startswith("/api/"):
        await answer(send, status, "application/json", json.dumps({"detail": reason}), more)
    else:
        await answer(send, status, "text/plain", reason, more)


async def read_body(receive: Receive, most: int) -> bytes | None:
    """The body of a request; None if it is larger than ``most`` bytes, or if the sender is gone."""
    body = b""
    while len(body) <= most:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body if len(body) <= most else None
    return None


async def bounded(app: ASGIApp, scope: Scope, receive: Receive, send: Send, asked: Asked) -> None:
    """The app, for which a body that turns out too large is a lost connection; its sender is told 413."""
    size, started, refused = 0, False, False

    async def counted() -> Message:
        nonlocal size, refused
        if refused:
            return {"type": "http.disconnect"}
        message = await receive()
        size += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if size <= MOST_BODY:
            return message
        refused = True
        if not started:
            await refuse(send, asked, 413, TOO_LARGE)
        return {"type": "http.disconnect"}

    async def unless_refused(message: Message) -> None:
        nonlocal started
        if started or not refused:
            started = True
            await send(message)

    await app(scope, counted, unless_refused)


def with_headers(send: Send) -> Send:
    """``send``, adding the headers that every answer has."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            ours = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": given + [pair for pair in ours if pair[0] not in names]}
        await send(message)

    return sending
