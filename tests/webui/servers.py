"""Real servers on the loopback address, and questions to them that no client library would put so."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

TOKEN = "the-right-token"


@dataclass(frozen=True)
class Served:
    """A server that runs, what it said of itself, and its process if it has one of its own."""

    port: int
    line: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@contextmanager
def command(folder: Path, *flags: str, **environment: str) -> Iterator[Served]:
    """``simpletuner server`` on a free port, in a process and a working directory of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "SIMPLETUNER_TOKEN"}
    process = subprocess.Popen(
        [sys.executable, "-m", "simpletuner.cli", "server", "--port", "0", *flags],
        cwd=folder,
        env=inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(int(line.partition("://")[2].partition("/")[0].rpartition(":")[2]), line, process)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def in_thread(app: ASGIApp, listener: socket.socket) -> Iterator[Served]:
    """An app in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield Served(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


def raw(served: Served, *lines: str, body: bytes = b"") -> str:
    """The answer to a request of exactly these lines and this body; nothing if the connection is broken off."""
    closing = () if any(line.startswith("Connection:") for line in lines) else ("Connection: close",)
    head = "".join(f"{line}\r\n" for line in (*lines, *closing, ""))
    answer = b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection, suppress(ConnectionError):
        connection.sendall(head.encode() + body)
        while part := connection.recv(65536):
            answer += part
    return answer.decode("utf-8", "replace")


def status(answer: str) -> int:
    """The status of a raw answer."""
    return int(answer.split(" ", 2)[1])
