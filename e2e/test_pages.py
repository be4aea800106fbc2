"""Every page in five languages, wide and narrow, light and dark: nothing is cut, nothing overlaps the window.

With `E2E_PICTURES=folder` the pictures of the documentation are written there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from e2e.browser import faults, marked, overflowing, shoot
from e2e.conftest import ROOT, Server
from e2e.steps import values_for
from simpletuner.translation import LANGUAGES

PROJECT_TABS = ("basic", "model", "data", "training", "losses", "validation", "run", "json")
SUFFIXES = {"wide": "", "phone": "-phone", "dark": "-dark"}
# Name, window, dark, and the pages that are looked at so; none: all.
LOOKS = (
    ("wide", (1280, 900), False, ()),
    ("phone", (390, 844), False, ()),
    ("dark", (1280, 900), True, ("projects", "project-losses", "run")),
)


def pictures() -> Path:
    """Where pictures go: to be looked at, or for the documentation."""
    return Path(os.environ.get("E2E_PICTURES", ROOT / "output" / "e2e")).resolve()


def wanted(name: str, size: str, language: str) -> bool:
    """Whether a picture is written: all of them to be looked at, fewer for the documentation."""
    return "E2E_PICTURES" not in os.environ or size == "wide" or (name, language) == ("run", "en")


@pytest.fixture(scope="module")
def trained(workplace: Path) -> list[str]:
    """Two short runs to show and to compare, without and with alignment: their ids."""
    server = Server(workplace, workplace / "for-runs.log")
    server.start()
    ids = []
    for name, aligned in (("baseline", False), ("lighthouse", True)):
        values = values_for("sd3", name) | {"max_train_steps": 120, "validation_step_interval": 30}
        if not aligned:
            values = {option: value for option, value in values.items() if not option.startswith("crepa_")}
        server.ask("configs", {"name": name, "values": values})
        ids.append(server.ask("runs", {"project": name})["id"])
        while server.ask(f"runs/{ids[-1]}")["state"] in ("starting", "running"):
            time.sleep(0.5)
        assert server.ask(f"runs/{ids[-1]}")["state"] == "finished"
    server.kill()
    return ids


def pages(runs: list[str]) -> dict[str, tuple[str, str]]:
    """Every page by name: its address, and a mark that is there once it is."""
    found = {"projects": ("/", "new_project"), "runs": ("/runs", f"open_{runs[0]}")}
    found |= {f"project-{tab}": (f"/projects/lighthouse?tab={tab}", "save") for tab in PROJECT_TABS}
    found["run"] = (f"/runs/{runs[1]}", "chart_base_loss")
    found["compare"] = (f"/compare?runs={runs[0]},{runs[1]}", "chart_base_loss")
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_fits(browser: Chrome, server: Server, trained: list[str], language: str) -> None:
    wrong = []
    for size, (width, height), dark, shown in LOOKS:
        browser.set_window_size(width, height)
        browser.get(f"{server.url}/preferences?language={language}&dark={int(dark)}&next=/")
        for name, (address, mark) in pages(trained).items():
            if name not in shown and shown:
                continue
            browser.get(server.url + address)
            marked(browser, mark)
            browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 400))")  # charts draw
            wrong += [f"{name} {size}: {fault}" for fault in [*overflowing(browser), *faults(browser)]]
            if wanted(name, size, language):
                shoot(browser, pictures() / f"webui-{name}{SUFFIXES[size]}.{language}.png", whole=True)
    assert wrong == []
