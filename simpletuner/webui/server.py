"""The server of the WebUI: pages, API and the guard in front of them, in one process."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote

import psutil
import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from simpletuner.webui.api import add_api
from simpletuner.webui.guard import Guard
from simpletuner.webui.login import checked_token
from simpletuner.webui.pages import register_pages
from simpletuner.webui.pages.layout import add_preferences
from simpletuner.webui.site import Site

PORT = 7860
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
TOKEN_VARIABLE = "SIMPLETUNER_TOKEN"
MOST_HEAD = 2**16  # bytes of a request before its body
RECONNECT_SECONDS = 30.0
MOST_MESSAGE = 2**21  # bytes of a message of a page's websocket
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#3558a8"/>'
    '<path d="M3 4q5 0 5 4t5 4M3 12q5 0 5-4t5-4" fill="none" stroke="#fff" stroke-width="1.6"/></svg>'
)


def make_app(site: Site, *, token: str | None = None, allowed_hosts: Sequence[str] = LOOPBACK_NAMES) -> ASGIApp:
    """Pages and API of a site behind the guard. One process can have one of these, as NiceGUI is one application.

    Args:
        token: what a visitor has to tell; None where everybody who reaches the server may use it.
        allowed_hosts: the ``Host`` headers that are answered, with their port where it isn't that of the scheme.
    """
    app = FastAPI(title="SimpleTuner", version="1", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")
    add_api(app, site)
    add_preferences(app)
    register_pages(site)
    ui.run_with(
        app,
        title="SimpleTuner",
        favicon=_ICON,
        dark=None,
        reconnect_timeout=RECONNECT_SECONDS,
        gzip_middleware_factory=lambda inner: GZipMiddleware(inner, minimum_size=1000, compresslevel=5),
        show_welcome_message=False,
    )
    return Guard(app, allowed_hosts, token)


def serve(
    site: Site, host: str = "127.0.0.1", port: int = PORT, *, allowed_hosts: Sequence[str] = (), open_page: bool = False
) -> int:
    """Serve a site until Ctrl-C or SIGTERM; returns the exit code. Says its address in one line.

    A token is needed where the environment gives one, and where others than this machine's users can come: on an
    address that isn't a loopback one, or behind a proxy, which ``allowed_hosts`` are for. Then one is made, and said
    with the address. Raises ``ValueError`` for an address that can't be listened on, or a token that can be none.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    token = checked_token(given) if given else None
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        if token is None and (allowed_hosts or not is_loopback(listener.getsockname()[0])):
            token = secrets.token_urlsafe()
        for name in ("nicegui", "uvicorn", "asyncio"):
            logging.getLogger(name).setLevel(logging.ERROR)
        app = make_app(site, token=token, allowed_hosts=hosts_of(host, port, allowed_hosts))
        config = uvicorn.Config(
            app,
            http="h11",  # which bounds the head of a request
            log_level="error",
            access_log=False,
            server_header=False,
            ws_max_size=MOST_MESSAGE,
            h11_max_incomplete_event_size=MOST_HEAD,
            timeout_graceful_shutdown=1,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_no_end)
        address = address_of(host, port, None if given else token)
        print(f"SimpleTuner is at {address} (Ctrl-C ends the server; trainings go on).", flush=True)
        if open_page:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with suppress(KeyboardInterrupt):  # raised again by uvicorn, after an orderly end
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. ``ValueError`` says what to do if that can't be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((str(address[0]), port), family=family)
    except socket.gaierror as error:
        raise ValueError(f"--host {host!r} is no address of this machine ({error.strerror}).") from error
    except OverflowError as error:
        raise ValueError(f"--port {port} is no port. Use a number from 0 to 65535.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is in use: is a server running already? Choose another with --port."
        elif error.errno == errno.EACCES:
            message = f"port {port} needs more rights. Choose one above 1023 with --port."
        else:
            message = f"{host}:{port} can't be listened on: {error.strerror}. Choose another --host or --port."
        raise ValueError(message) from error


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def hosts_of(host: str, port: int, allowed_hosts: Sequence[str] = ()) -> list[str]:
    """The ``Host`` headers of a server: its own names with the port, and those of proxies also without."""
    names = [*LOOPBACK_NAMES, *_own_names(host)]
    hosts = [f"{name}:{port}" for name in (*names, *(name for name in allowed_hosts if not _has_port(name)))]
    return list(dict.fromkeys((*hosts, *allowed_hosts, *(names if port == 80 else ()))))


def address_of(host: str, port: int, token: str | None = None) -> str:
    """Where a browser finds the server, with the token where one is needed."""
    place = f"http://{_own_names(host)[0]}:{port}/"
    return place if token is None else f"{place}?token={quote(token, safe='')}"


def _is_no_end(record: logging.LogRecord) -> bool:
    """Whether a message is about anything else than requests that were still open when the server ended."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError) and "graceful shutdown" not in record.getMessage()


def _own_names(host: str) -> list[str]:
    """The names under which a server that is bound to ``host`` is reached, the most useful one first."""
    bare = host.strip("[]").partition("%")[0]
    try:
        everywhere = ipaddress.ip_address(bare).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        return [_as_host(bare)]
    addresses = [
        part.address.partition("%")[0]
        for parts in psutil.net_if_addrs().values()
        for part in parts
        if part.family in (socket.AF_INET, socket.AF_INET6)
    ]
    outward = sorted(addresses, key=lambda address: (is_loopback(address), ":" in address))
    return list(dict.fromkeys((*map(_as_host, outward), socket.gethostname())))


def _as_host(name: str) -> str:
    """The name as in an address: an IPv6 address is in brackets."""
    return f"[{name}]" if ":" in name else name


def _has_port(name: str) -> bool:
    return name.rpartition(":")[2].isdigit() and not name.endswith("]")
