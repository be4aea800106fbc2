"""Who gets through to the server: other sites' pages, other names and wrong tokens don't, by HTTP or by websocket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlencode

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from simpletuner.webui.exchange import MOST_BODY
from simpletuner.webui.guard import MOST_STREAMS, MOST_STREAMS_OF_ONE, Guard
from simpletuner.webui.login import COOKIE, MOST_FAILURES, WINDOW, Failures
from simpletuner.webui.server import MOST_HEAD, hosts_of, listening
from tests.webui.servers import TOKEN, Served, command, in_thread, raw, status

EVIL = "https://evil.example"
# A page's own questions about itself, and what starts, changes or tells something.
READS = ("/", "/api/v1/configs", "/_nicegui_ws/socket.io/?EIO=4&transport=polling")


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server as it is by default: everybody on this machine may use it."""
    with command(tmp_path_factory.mktemp("open")) as served:
        yield served


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that needs a token."""
    with command(tmp_path_factory.mktemp("closed"), SIMPLETUNER_TOKEN=TOKEN) as served:
        yield served


def get(served: Served, path: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(f"{served.url}{path}", headers=named, timeout=20)


def post(served: Served, path: str, content: object, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{served.url}{path}", json=content, headers=named, timeout=20)


class TestOtherNames:
    """DNS rebinding: a name of the attacker leads to this address, so that his page is of the same origin."""

    @pytest.mark.parametrize("path", READS)
    def test_are_refused(self, open_server: Served, path: str) -> None:
        port = open_server.port
        others = ["evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"localhost.:{port}"]
        for name in (
            *others,
            "127.0.0.1",
            f"127.0.0.1:{port + 1}",
            f"0.0.0.0:{port}",
            f"x@127.0.0.1:{port}",
            "null",
            "",
        ):
            answer = raw(open_server, f"GET {path} HTTP/1.1", f"Host: {name}")
            assert status(answer) in (400, 421), (name, answer)
            assert name == "" or f"Host: {name}" not in answer

    def test_own_ones_are_not(self, open_server: Served) -> None:
        for name in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]"):
            answer = raw(open_server, "GET /api/v1/configs HTTP/1.1", f"Host: {name}:{open_server.port}")
            assert status(answer) == 200

    def test_a_missing_or_a_second_one_is_refused(self, open_server: Served) -> None:
        host = f"Host: {open_server.host}"
        assert status(raw(open_server, "GET / HTTP/1.0")) in (400, 421)
        assert status(raw(open_server, "GET / HTTP/1.1", host, "Host: evil.example")) in (400, 421)
        assert status(raw(open_server, "GET / HTTP/1.1", "Host: evil.example", host)) in (400, 421)
        assert status(raw(open_server, "GET / HTTP/1.1", "Host: evil.example", f"X-Forwarded-{host}")) == 421

    def test_are_refused_for_websockets(self, open_server: Served) -> None:
        lines = websocket_lines(f"evil.example:{open_server.port}", f"http://evil.example:{open_server.port}")
        assert status(raw(open_server, *lines)) == 403


def websocket_lines(host: str, origin: str | None, *more: str) -> list[str]:
    """The handshake of a websocket of the pages."""
    return [
        "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *([] if origin is None else [f"Origin: {origin}"]),
        *more,
    ]


def websocket(served: Served, **headers: str) -> str:
    """The first message of the pages' socket.io over a websocket with these headers; its status, if it is refused."""
    url = f"ws://{served.host}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with connect(url, additional_headers=named, open_timeout=20, proxy=None) as socket:
            return str(socket.recv(timeout=20))
    except InvalidStatus as refused:
        return str(refused.response.status_code)


class TestOtherSites:
    """A page of another site, open in the same browser, can neither read nor start anything."""

    @pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost", "http://localhost:1", "file://", "",
                                        "http://127.0.0.1.evil.example", "chrome-extension://x"])  # fmt: skip
    @pytest.mark.parametrize("path", READS)
    def test_fetches_are_refused(self, open_server: Served, origin: str, path: str) -> None:
        answer = get(open_server, path, Origin=origin)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers

    def test_a_preflight_allows_nothing(self, open_server: Served) -> None:
        headers = {"Origin": EVIL, "Access-Control-Request-Method": "PUT"}
        answer = httpx.options(f"{open_server.url}/api/v1/configs/a", headers=headers)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers

    def test_forms_are_refused(self, open_server: Served) -> None:
        """A form needs no preflight: as text, its body can be JSON."""
        body = json.dumps({"name": "planted"})
        for headers in (
            {"Origin": EVIL},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
        ):
            kind = {"Content-Type": "text/plain"}
            answer = httpx.post(f"{open_server.url}/api/v1/configs", content=body, headers=kind | headers)
            assert answer.status_code == 403
        assert get(open_server, "/api/v1/configs").json() == []

    def test_only_leads_to_pages(self, open_server: Served) -> None:
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        frame = link | {"Sec-Fetch-Dest": "iframe"}
        image = link | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert get(open_server, "/", **link).status_code == 200
        assert get(open_server, "/api/v1/configs", **link).status_code == 403
        for other in (frame, image):
            assert get(open_server, "/", **other).status_code == 403

    @pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:1"])
    def test_websockets_are_refused(self, open_server: Served, origin: str) -> None:
        """By websocket, and by the requests that socket.io makes where there is none."""
        assert websocket(open_server, Origin=origin) == "403"
        polling = f"{open_server.url}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
        assert httpx.get(polling, headers={"Origin": origin}).status_code == 403
        opened = json.loads(httpx.get(polling).text[1:])
        answer = httpx.post(f"{polling}&sid={opened['sid']}", content="40", headers={"Origin": origin})
        assert answer.status_code == 403

    def test_a_websocket_without_origin_is_refused(self, open_server: Served) -> None:
        assert websocket(open_server) == "403"
        assert websocket(open_server, Authorization="Bearer any") == "403"

    def test_own_pages_are_served(self, open_server: Served) -> None:
        for origin in (open_server.url, f"http://localhost:{open_server.port}"):
            assert get(open_server, "/api/v1/configs", Origin=origin, Sec_Fetch_Site="same-origin").status_code == 200
            assert websocket(open_server, Origin=origin).startswith('0{"sid"')
            sent = post(open_server, "/api/v1/validate", {"values": {}}, Origin=origin)
            assert sent.status_code == 200
        assert post(open_server, "/api/v1/validate", {"values": {}}, Sec_Fetch_Site="none").status_code == 200


class TestToken:
    """A server that others can reach asks everybody for the token."""

    @pytest.mark.parametrize("path", (*READS, "/api/v1/openapi.json", "/api/v1/runs/x/events", "/nowhere"))
    def test_nothing_is_served_without_it(self, closed_server: Served, path: str) -> None:
        wrong: list[dict[str, str]] = [{}, {"Cookie": f"{COOKIE}=wrong"}, {"X-SimpleTuner-Token": "wrong"}]
        for headers in (*wrong, *({"Authorization": text} for text in ("Bearer wrong", "Bearer", "Basic eDp5"))):
            assert get(closed_server, path, **headers).status_code == 401
        assert post(closed_server, "/api/v1/configs", {"name": "planted"}).status_code == 401

    def test_a_header_or_a_cookie_tells_it(self, closed_server: Served) -> None:
        for headers in (
            {"Authorization": f"Bearer {TOKEN}"},
            {"Authorization": f"bearer  {TOKEN}"},
            {"X-SimpleTuner-Token": TOKEN},
            {"Cookie": f"a=b; {COOKIE}={TOKEN}"},
        ):
            for path in READS:
                assert get(closed_server, path, **headers).status_code == 200

    def test_the_address_tells_it_for_pages_only(self, closed_server: Served) -> None:
        assert get(closed_server, f"/api/v1/configs?token={TOKEN}").status_code == 401
        answer = get(closed_server, f"/compare?runs=a%26b&token={TOKEN}&x=")
        assert answer.status_code == 303 and answer.headers["location"] == "/compare?runs=a%26b&x="
        cookie = answer.headers["set-cookie"]
        assert cookie == f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
        assert get(closed_server, "/", Cookie=cookie.partition(";")[0]).status_code == 200
        wrong = get(closed_server, "/?token=wrong")
        assert wrong.status_code == 401 and "not the access token" in wrong.text and "set-cookie" not in wrong.headers

    def test_behind_a_proxy_with_tls_the_cookie_is_for_tls_only(self, closed_server: Served) -> None:
        answer = get(closed_server, f"/?token={TOKEN}", X_Forwarded_Proto="https")
        assert answer.headers["set-cookie"].endswith("; Secure")

    def test_a_link_on_another_site_gets_the_cookie_too(self, closed_server: Served) -> None:
        """A browser counts a redirect as the other site's request, and would not send the cookie with it."""
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        for headers in (link, {"Referer": "http://elsewhere.example/"}):
            answer = get(closed_server, f"/runs?token={TOKEN}&a=%22%3E", **headers)
            assert answer.status_code == 200 and "set-cookie" in answer.headers
            assert 'content="0;url=/runs?a=%22%3E"' in answer.text and "<script" not in answer.text

    @pytest.mark.parametrize("path", ["//evil.example/", "/%2F/evil.example", "/\\evil.example", "/%5Cevil.example",
                                      "/%0d%0aX-Injected:%201", "//evil.example/%2e%2e"])  # fmt: skip
    def test_the_redirect_can_not_go_elsewhere(self, closed_server: Served, path: str) -> None:
        answer = raw(closed_server, f"GET {path}?token={TOKEN} HTTP/1.1", f"Host: {closed_server.host}")
        location = re.search(r"(?mi)^location: (.*?)\r$", answer)
        assert status(answer) in (303, 400) and "\r\nX-Injected" not in answer
        assert location is None or re.fullmatch(r"/(?![/\\]).*", location[1])

    def test_websockets_need_it(self, closed_server: Served) -> None:
        own = closed_server.url
        assert websocket(closed_server, Origin=own) == "403"
        assert websocket(closed_server, Origin=own, Cookie=f"{COOKIE}=wrong") == "403"
        assert websocket(closed_server, Cookie=f"{COOKIE}={TOKEN}") == "403"
        assert websocket(closed_server, Origin=EVIL, Cookie=f"{COOKIE}={TOKEN}") == "403"
        assert websocket(closed_server, Origin=EVIL, Authorization=f"Bearer {TOKEN}") == "403"
        assert websocket(closed_server, Origin=own, Cookie=f"{COOKIE}={TOKEN}").startswith('0{"sid"')
        assert websocket(closed_server, Authorization=f"Bearer {TOKEN}").startswith('0{"sid"')

    def test_it_does_not_lift_the_other_checks(self, closed_server: Served) -> None:
        right = {"Cookie": f"{COOKIE}={TOKEN}"}
        assert get(closed_server, "/api/v1/configs", Origin=EVIL, **right).status_code == 403
        assert get(closed_server, "/api/v1/configs", Host="evil.example", **right).status_code == 421


class TestLogin:
    """The form that asks for the token."""

    def test_is_plain_and_in_the_visitors_language(self, closed_server: Served) -> None:
        page = get(closed_server, "/runs?x=1", Accept_Language="es-MX,es;q=0.9")
        assert page.status_code == 401 and '<html lang="es">' in page.text and "<script" not in page.text
        assert 'name="next" value="/runs?x=1"' in page.text
        assert '<html lang="ja">' in get(closed_server, "/", Cookie="simpletuner_language=ja").text
        assert '<html lang="en">' in get(closed_server, '/?"><script>=1', Cookie='simpletuner_language="><script>').text
        assert page.headers["referrer-policy"] == "same-origin"  # else its form would come with the Origin "null"

    def test_gives_the_cookie_and_goes_on(self, closed_server: Served) -> None:
        answer = login(closed_server, TOKEN, "/runs?x=1")
        assert answer.status_code == 303 and answer.headers["location"] == "/runs?x=1"
        assert answer.headers["set-cookie"].startswith(f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Strict")
        wrong = login(closed_server, "wrong", "/runs")
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers and 'value="/runs"' in wrong.text
        assert get(closed_server, "/login", Cookie=f"{COOKIE}={TOKEN}").headers["location"] == "/"
        assert 'value="/"' in get(closed_server, "/login").text

    @pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nX: 1",
                                        "/\t/evil.example", "javascript:alert(1)", "evil", ""])  # fmt: skip
    def test_can_not_lead_elsewhere(self, closed_server: Served, target: str) -> None:
        answer = login(closed_server, TOKEN, target)
        assert answer.status_code == 303 and answer.headers["location"] == "/" and "x" not in answer.headers

    def test_is_not_for_other_sites(self, closed_server: Served) -> None:
        for headers in ({"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            assert login(closed_server, TOKEN, "/", **headers).status_code == 403

    def test_takes_no_large_form(self, closed_server: Served) -> None:
        assert login(closed_server, "x" * 10_000, "/").status_code == 413

    def test_is_not_there_where_none_is_needed(self, open_server: Served) -> None:
        assert login(open_server, TOKEN, "/").status_code in (404, 405)


def login(served: Served, token: str, target: str, **headers: str) -> httpx.Response:
    form = urlencode({"token": token, "next": target})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return httpx.post(f"{served.url}/login", content=form, headers=kind | headers)


def test_every_answer_has_the_headers(open_server: Served, closed_server: Served) -> None:
    answers = [get(open_server, path) for path in (*READS, "/nowhere", "/api/nowhere", "/favicon.ico")]
    answers += [get(closed_server, "/"), get(open_server, "/", Host="evil.example"), get(open_server, "/", Origin=EVIL)]
    for answer in answers:
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] in ("no-referrer", "same-origin")
        assert "server" not in answer.headers


class TestSizes:
    """A body is at most so large, whatever it says of itself."""

    def test_a_stated_one_is_refused_before_it_comes(self, open_server: Served) -> None:
        lines = ["POST /api/v1/validate HTTP/1.1", f"Host: {open_server.host}", "Content-Type: application/json"]
        for length in (str(MOST_BODY + 1), "9" * 30):
            assert status(raw(open_server, *lines, f"Content-Length: {length}")) in (400, 413)

    @pytest.mark.parametrize("path", ["/api/v1/validate", "/_nicegui_ws/socket.io/?EIO=4&transport=polling&sid=x"])
    def test_a_chunked_one_is_refused_on_the_way(self, open_server: Served, path: str) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(MOST_BODY // 2**16 + 2):
                yield b" " * 2**16

        try:
            answer = httpx.post(f"{open_server.url}{path}", content=chunks(), timeout=20)
        except httpx.TransportError:  # closed while we were still sending
            return
        assert answer.status_code in (413, 400)

    def test_a_head_is_bounded_too(self, open_server: Served) -> None:
        long = "x" * 2 * MOST_HEAD
        host = f"Host: {open_server.host}"
        for lines in ([f"GET /?{long} HTTP/1.1", host], ["GET / HTTP/1.1", host, f"Cookie: {long}"]):
            answer = raw(open_server, *lines)
            assert answer == "" or status(answer) == 400

    def test_one_below_the_limit_is_read(self, open_server: Served) -> None:
        values = {"values": {"unknown": "x" * (MOST_BODY - 1000)}}
        answer = post(open_server, "/api/v1/validate", values)
        assert answer.status_code == 200 and not answer.json()["valid"]


async def _hello(request: Request) -> Response:
    return PlainTextResponse(f"{request.url.query} {len(await request.body())}")


async def _events(request: Request) -> Response:
    async def endless() -> AsyncIterator[str]:
        yield ": alive\n\n"
        await asyncio.Event().wait()

    return StreamingResponse(endless(), media_type="text/event-stream")


SMALL = Starlette(
    routes=[Route("/hello", _hello, methods=["GET", "POST"]), Route("/api/v1/runs/{run}/events", _events)]
)


@contextmanager
def guarded(token: str | None = None, failures: Failures | None = None) -> Iterator[Served]:
    """A small app behind the guard."""
    listener = listening("127.0.0.1", 0)
    guard = Guard(SMALL, hosts_of("127.0.0.1", listener.getsockname()[1]), token, failures)
    with in_thread(guard, listener) as served:
        yield served


def test_a_chunked_body_ends_with_413() -> None:
    with guarded() as served:
        chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        lines = ["POST /hello HTTP/1.1", f"Host: {served.host}", "Transfer-Encoding: chunked"]
        fits, more = chunk * (MOST_BODY // 2**16), b"1\r\n \r\n"
        answer = raw(served, *lines, body=fits + b"0\r\n\r\n")
        assert status(answer) == 200 and answer.endswith(f" {MOST_BODY}")
        assert status(raw(served, *lines, body=fits + more)) == 413


def test_event_streams_are_bounded() -> None:
    listener = listening("127.0.0.1", 0)
    with (
        in_thread(Guard(SMALL, hosts_of("127.0.0.1", listener.getsockname()[1])), listener) as served,
        ExitStack() as kept,
    ):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        client = kept.enter_context(httpx.Client(base_url=served.url, limits=limits, timeout=20))

        def opened(address: str = "127.0.0.1") -> httpx.Response:
            headers = {"X-Forwarded-For": address}
            return kept.enter_context(client.stream("GET", "/api/v1/runs/a/events", headers=headers))

        streams = [opened() for _ in range(MOST_STREAMS_OF_ONE)]
        refused = opened()
        assert [stream.status_code for stream in streams] == [200] * MOST_STREAMS_OF_ONE
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        others = [opened("10.0.0.1") for _ in range(MOST_STREAMS - MOST_STREAMS_OF_ONE)]
        assert {stream.status_code for stream in others} == {200}
        assert opened("10.0.0.2").status_code == 503
        assert client.get("/hello").status_code == 200
        for stream in streams:
            stream.close()
        for _ in range(1000):  # until the server has noticed
            if opened("10.0.0.2").status_code == 200:
                break
        else:
            pytest.fail("streams that ended still count")


def test_wrong_tokens_are_slowed() -> None:
    now = [0.0]
    with guarded(TOKEN, Failures(lambda: now[0])) as served:

        def tell(token: str, address: str = "10.0.0.1") -> int:
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": address}
            return httpx.get(f"{served.url}/hello", headers=headers).status_code

        assert [tell("old") for _ in range(2 * MOST_FAILURES)] == [401] * 2 * MOST_FAILURES  # one and the same
        assert [tell(f"guess{number}") for number in range(MOST_FAILURES - 1)] == [401] * (MOST_FAILURES - 1)
        assert tell("another") == 429 and tell(TOKEN) == 429
        assert login(served, TOKEN, "/", **{"X-Forwarded-For": "10.0.0.1"}).status_code == 429
        assert tell(TOKEN, "10.0.0.2") == 200
        now[0] = WINDOW
        assert tell(TOKEN) == 200 and tell("another") == 401


def test_an_owner_of_many_addresses_is_one() -> None:
    failures = Failures(lambda: 0.0)
    for number in range(MOST_FAILURES):
        failures.add(f"2001:db8::{number:x}", f"guess{number}")
    assert failures.too_many("2001:db8::ffff") and not failures.too_many("2001:db8:0:1::1")
    assert not failures.too_many("10.0.0.1") and not failures.too_many("")


def test_the_app_never_sees_the_token_in_an_address() -> None:
    with guarded(TOKEN) as served:
        answer = get(served, f"/hello?a=1&token={TOKEN}&b=%20", Authorization=f"Bearer {TOKEN}")
        assert answer.text == "a=1&b=+ 0"
