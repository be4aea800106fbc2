"""Whether what a page links to is there: pages, anchors in them, files of the repository, pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from documentation_tools.pages import Page, english_of, read_page

MADE_PICTURES = re.compile(r"webui-.+\.png")
"""Pictures that `make pictures` makes."""

_ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:")


def broken_links(page: Page) -> list[str]:
    """Links to nothing, one a line. Addresses on the web are left alone."""
    return [
        f"{page.path.name}, line {section.line}: {problem}"
        for section in page.sections
        for target in section.links
        if (problem := _broken(target, page)) is not None
    ]


def missing_pictures(page: Page) -> list[str]:
    """Pictures that aren't there, or have no alternative text; one a line."""
    return [
        f"{page.path.name}, line {section.line}: {problem}"
        for section in page.sections
        for target, text in section.images
        for problem in _picture_problems(target, text, page)
    ]


def _broken(target: str, page: Page) -> str | None:
    if _ELSEWHERE.match(target):
        return None
    path, _, anchor = target.partition("#")
    file = (page.path.parent / path).resolve() if path else page.path
    if path.startswith("/"):
        return f"{target} isn't relative to the page"
    if not file.exists():
        return f"{target} isn't there"
    if path and english_of(file) != file:
        return f"{target} names a translation; link to the English page, the site takes the reader's language"
    if anchor and file.suffix == ".md" and anchor not in anchors(english_of(file)):
        return f"{target}: the page has no such anchor"
    return None


@cache
def _anchors(file: Path, changed: int) -> set[str]:
    return read_page(file).anchors


def anchors(english: Path) -> set[str]:
    """The anchors of a page; those of its translations are the same."""
    return _anchors(english, english.stat().st_mtime_ns)


def _picture_problems(target: str, text: str, page: Page) -> Iterator[str]:
    file = page.path.parent / target
    if not text.strip():
        yield f"the picture {target} has no alternative text"
    if not _ELSEWHERE.match(target) and not MADE_PICTURES.fullmatch(file.name) and not file.exists():
        yield f"the picture {target} isn't there"
