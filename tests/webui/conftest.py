"""A site in a temporary folder, and a person who opens its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from nicegui.testing import User, user_simulation

from simpletuner.webui import draft
from simpletuner.webui.pages import register_pages, run_panel
from simpletuner.webui.site import Site, make_site
from tests.webui.small_runs import write_project


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose working directory, only root, and projects lie in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    return make_site(tmp_path / "config")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the runs of `small_runs` write."""
    return tmp_path / "output"


@pytest.fixture
def project(site: Site, tiny_folder: Callable[[str], Path]) -> Callable[..., str]:
    """`project(max_train_steps=9)` writes the project "small"."""
    return partial(write_project, site, tiny_folder("sd3"))


@pytest.fixture
async def user(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[User]:
    """Somebody at the pages of the site, for whom checks begin at once."""
    monkeypatch.setattr(draft, "DELAY", 0.01)
    monkeypatch.setattr(run_panel, "LOOK_FOR_RUNS", 0.2)  # what waits for the next look keeps a page from closing
    async with user_simulation() as person:
        register_pages(site)
        yield person
