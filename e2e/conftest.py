"""A workplace with tiny models, the real server in it, and Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import pytest
from selenium.webdriver import Chrome

from e2e.browser import shoot, start_browser
from tests import tiny_models
from tests.helpers.data.files import write_images

ROOT = Path(__file__).parents[1]
FAMILIES = ("sd3", "sd1x")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a user has one: models, a teacher, images; no projects yet."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "models").mkdir()
    for family in FAMILIES:
        tiny_models.tiny_folder(family, root / "models")
    (root / "teachers").mkdir()
    tiny_models.tiny_teacher(root / "teachers")
    write_images(root / "images" / "lighthouses", [(64, 64)] * 12)
    entry = {"id": "lighthouses", "instance_data_dir": "images/lighthouses", "caption_strategy": "textfile"}
    (root / "data.json").write_text(json.dumps([entry]))
    (root / "config").mkdir()
    yield root
    for process in psutil.process_iter(["cmdline"]):  # trainings outlive servers, also that of a test that failed
        if any(str(root) in argument for argument in process.info["cmdline"] or ()):
            process.kill()


class Server:
    """The server process, which tests may kill and start again."""

    def __init__(self, workplace: Path, log: Path) -> None:
        self.workplace = workplace
        self._log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simpletuner.cli", "server", "--port", str(self.port)],
                cwd=self.workplace, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urlopen(f"{self.url}/api/v1/families", timeout=5):
                    return
            except (URLError, OSError):
                assert self.process.poll() is None, self._log.read_text()
                time.sleep(0.1)
        raise AssertionError(f"The server does not answer:\n{self._log.read_text()}")

    def kill(self) -> None:
        """Ends it without a chance to say goodbye."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def ask(self, path: str, content: object = None) -> Any:
        """Calls the API, with a POST where there is content."""
        body = None if content is None else json.dumps(content).encode()
        request = Request(f"{self.url}/api/v1/{path}", body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=30) as response:
                return json.loads(response.read())
        except HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()


@pytest.fixture
def server(workplace: Path, tmp_path: Path) -> Iterator[Server]:
    """The real server, started as a user starts it."""
    running = Server(workplace, tmp_path / "server.log")
    running.start()
    yield running
    running.kill()
    assert "Traceback" not in running.log(), running.log()


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """`program("chromium")`: where it is."""

    def find(name: str) -> str:
        found = shutil.which(name)
        assert found, (
            f"{name} is not installed: apt-get install chromium chromium-driver fonts-noto-core fonts-noto-cjk"
        )
        return found

    return find


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers that a test failed, for the picture of it."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
def browser(program: Callable[[str], str], request: pytest.FixtureRequest) -> Iterator[Chrome]:
    """Headless Chromium with a clean profile; of a test that fails there is a picture in `output/e2e`."""
    chrome = start_browser(program("chromium"), program("chromedriver"))
    yield chrome
    if request.node.stash.get(FAILED, False):
        shoot(chrome, ROOT / "output" / "e2e" / f"{request.node.name}.png")
    chrome.quit()
