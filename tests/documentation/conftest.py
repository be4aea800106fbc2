"""The pages, and small ones to try the checks on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from documentation_tools.pages import ROOT, Page, page_files, parse_page, read_page

WritePage = Callable[..., Page]


@pytest.fixture
def write_page(tmp_path: Path) -> WritePage:
    """`write_page("# Title…")`: a page of a folder of its own."""

    def write(text: str, name: str = "PAGE.md") -> Page:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return parse_page(text, path)

    return write


def all_pages(language: str | None = None) -> list[Page]:
    """The README and the pages of the documentation."""
    return [read_page(file) for file in page_files(ROOT, language)]


def page_id(page: Page) -> str:
    return page.path.relative_to(ROOT).as_posix()


EVERY_PAGE = pytest.mark.parametrize("page", all_pages(), ids=page_id)
EVERY_ENGLISH_PAGE = pytest.mark.parametrize("page", all_pages("en"), ids=page_id)
