"""The server as a whole: the command, what it says, what it loads, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from simpletuner.cli import main
from simpletuner.webui.server import address_of, hosts_of, is_loopback, listening
from tests.webui.servers import TOKEN, Served, command

PAGES = ("/", "/projects/mine", "/runs", "/compare")
# Names of the formats of pictures, which nobody loads.
NAMESPACES = ("http://www.w3.org/",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with one project."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "config").mkdir()
    (folder / "config" / "mine.json").write_text(json.dumps({"model_family": "sd3", "crepa_enabled": True}))
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """A server in the folder."""
    with command(folder) as served:
        yield served


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_elsewhere(served: Served, page: str) -> None:
    answer = httpx.get(served.url + page, timeout=30)
    assert answer.status_code == 200
    addresses = set(re.findall(r"https?://[^\s\"'`<>)\\]+|(?<=[\"'(])//[\w.-]+[^\s\"'`<>)\\]*", answer.text))
    assert not [address for address in addresses if not address.startswith((*NAMESPACES, served.url))]


def test_all_that_pages_load_is_here(served: Served) -> None:
    """Scripts, styles and what the styles name: every address leads to this server, which has it."""
    waiting, seen = set(PAGES), set[str]()
    with httpx.Client(base_url=served.url, timeout=30) as client:
        while waiting:
            path = waiting.pop()
            seen.add(path)
            answer = client.get(path)
            assert answer.status_code == 200, path
            kind = answer.headers["content-type"].partition(";")[0]
            if kind == "text/html":
                named = re.findall(r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"([^\"]+)\"", answer.text)
                named += re.findall(r"@import url\(\"([^\"]+)\"\)", answer.text)
            elif kind == "text/css":
                named = re.findall(r"url\(['\"]?([^'\")]+)", answer.text)
            else:
                named = []
            for name in named:
                if not name.startswith("data:"):
                    target = urljoin(served.url + path, name)
                    assert target.startswith(served.url + "/"), target
                    waiting |= {target.removeprefix(served.url)} - seen
    assert len(seen) > 10


def test_the_api_is_described_without_scripts_from_elsewhere(served: Served) -> None:
    assert "/api/v1/configs/{name}" in httpx.get(f"{served.url}/api/v1/openapi.json").json()["paths"]
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert httpx.get(served.url + path).status_code == 404


def test_it_writes_nothing_of_its_own(served: Served, folder: Path) -> None:
    for page in PAGES:
        httpx.get(served.url + page, timeout=30)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["config", "config/mine.json"]


def test_it_listens_at_one_place_only(served: Served) -> None:
    assert served.process is not None
    inodes = set()
    for descriptor in Path(f"/proc/{served.process.pid}/fd").iterdir():
        target = str(descriptor.readlink())
        inodes |= {target[8:-1]} if target.startswith("socket:[") else set()
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listens = [fields[1] for fields in lines if fields[3] == "0A" and fields[9] in inodes]
    assert listens == [f"0100007F:{served.port:04X}"]


def test_the_address_is_said_in_one_line(served: Served) -> None:
    assert served.line == f"SimpleTuner is at {served.url}/ (Ctrl-C ends the server; trainings go on).\n"


def test_it_ends_at_once_while_pages_and_streams_are_open(folder: Path) -> None:
    with command(folder, SIMPLETUNER_TOKEN=TOKEN) as served, httpx.Client(base_url=served.url, timeout=30) as client:
        assert TOKEN not in served.line  # who set it knows it
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        polling = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
        session = json.loads(client.get(polling).text[1:])["sid"]
        with socket.create_connection(("127.0.0.1", served.port)) as waiting:
            head = (
                f"GET {polling}&sid={session} HTTP/1.1\r\nHost: {served.host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            )
            waiting.sendall(head.encode())  # socket.io keeps it until there is something to tell
            assert client.get(f"/nowhere?token={TOKEN}x").status_code == 404
            assert client.get(f"/api/nowhere?token={TOKEN}").status_code == 404
            assert served.process is not None
            served.process.send_signal(signal.SIGINT)
            out, err = served.process.communicate(timeout=20)
        assert served.process.returncode == 0 and out == "" and TOKEN not in err and "Traceback" not in err


def test_beyond_loopback_a_token_is_made(folder: Path) -> None:
    with command(folder, "--allowed-host", "tuner.example") as served:
        token = served.line.partition("?token=")[2].split()[0]
        assert len(token) > 30
        for host in ("tuner.example", f"tuner.example:{served.port}", served.host):
            assert httpx.get(served.url, headers={"Host": host}).status_code == 401
        headers = {"Host": "tuner.example", "Authorization": f"Bearer {token}"}
        assert httpx.get(f"{served.url}/api/v1/configs", headers=headers).status_code == 200
        assert httpx.get(served.url, headers={"Host": "tuner.example:1"}).status_code == 421


def test_a_port_in_use_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening("127.0.0.1", 0) as taken:
        code = main(["server", "--configs", str(tmp_path), "--port", str(taken.getsockname()[1])])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert re.fullmatch(r"error: port \d+ is in use: .*--port.*\n", printed.err)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--host", "no.such.name.invalid"], "--host 'no.such.name.invalid'"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--root", "/no/such/folder"], "--root '/no/such/folder'"),
        (["--configs", "/dev/null/x"], "/dev/null"),
    ],
)
def test_a_wrong_flag_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert main(["server", "--configs", str(tmp_path), "--port", "0", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and err.count("\n") == 1


def test_a_token_that_can_be_none_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPLETUNER_TOKEN", "s3;x")
    assert main(["server", "--configs", str(tmp_path), "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert "SIMPLETUNER_TOKEN" in err and "s3;x" not in err


@pytest.mark.parametrize("package", ["nicegui", "psutil", "babel"])
def test_a_missing_extra_is_one_error(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from simpletuner.cli import main; sys.exit(main(['server']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        rf'error: the server needs {package}\S*: pip install "simpletuner-repa\[webui\]"\n', done.stderr
    )


def test_the_names_of_a_server() -> None:
    assert hosts_of("127.0.0.1", 7860) == ["localhost:7860", "127.0.0.1:7860", "[::1]:7860"]
    assert "tuner.lan:7860" in hosts_of("tuner.lan", 7860)
    assert set(hosts_of("::1", 80)) >= {"[::1]", "[::1]:80", "localhost"}
    proxied = hosts_of("127.0.0.1", 7860, ["tuner.example", "other.example:8443"])
    assert proxied[3:] == ["tuner.example:7860", "tuner.example", "other.example:8443"]
    everywhere = hosts_of("0.0.0.0", 7860)
    assert "0.0.0.0:7860" not in everywhere and f"{socket.gethostname()}:7860" in everywhere
    assert hosts_of("::", 7860) == everywhere


def test_the_address_of_a_server() -> None:
    assert address_of("127.0.0.1", 7860) == "http://127.0.0.1:7860/"
    assert address_of("::1", 7860, "a+b/c=") == "http://[::1]:7860/?token=a%2Bb%2Fc%3D"
    assert "0.0.0.0" not in address_of("0.0.0.0", 7860)
    for address, loopback in (
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
    ):
        assert is_loopback(address) is loopback


def test_nothing_heavy_is_imported() -> None:
    """The server starts at once and leaves memory to the trainings: torch is for them alone."""
    code = """
import importlib, pkgutil, sys
import simpletuner.webui, simpletuner.translation
for package in (simpletuner.webui, simpletuner.translation):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print([name for name in ("torch", "diffusers", "transformers", "accelerate") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[]\n", done.stderr
