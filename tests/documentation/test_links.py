"""Every link of a page leads to a file and an anchor that are there, and every picture is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation_tools.links import broken_links, missing_pictures
from documentation_tools.pages import Page
from tests.documentation.conftest import EVERY_PAGE, WritePage


@EVERY_PAGE
def test_links_lead_somewhere(page: Page) -> None:
    assert broken_links(page) == []


@EVERY_PAGE
def test_pictures_are_there(page: Page) -> None:
    assert missing_pictures(page) == []


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("NONE.md", "NONE.md isn't there"),
        ("OTHER.md#no-heading", "no such anchor"),
        ("#nothing", "no such anchor"),
        ("/OTHER.md", "isn't relative"),
        ("OTHER.es.md", "names a translation"),
    ],
)
def test_what_is_wrong_is_found(link: str, words: str, write_page: WritePage) -> None:
    write_page("# Other\n\n## A heading\n", "OTHER.md")
    write_page("# Otra\n\n## Un título\n", "OTHER.es.md")
    problems = broken_links(write_page(f"# A\n\n## B\n\n[there]({link})\n"))
    assert len(problems) == 1 and "line 3" in problems[0] and words in problems[0], problems


def test_what_is_right_passes(write_page: WritePage, tmp_path: Path) -> None:
    write_page('# Other\n\n## A heading\n\n| A |\n|---|\n| <a id="row"></a>`b` |\n', "OTHER.md")
    text = "[a](OTHER.md#a-heading) [b](OTHER.md#row) [c](OTHER.md) [d](#a) [e](https://arxiv.org/abs/2410.06940#x)"
    assert broken_links(write_page(f"# A\n\n{text}\n")) == []
    # In a translation the anchors are those of the English pages.
    assert broken_links(write_page(f"# Ä\n\n{text}\n", "PAGE.es.md")) == []


def test_missing_pictures_are_found(write_page: WritePage) -> None:
    text = "# A\n\n![a curve](images/curve.png) ![](images/webui-runs.en.png) ![runs](images/webui-runs.en.png)\n"
    problems = missing_pictures(write_page(text))
    assert [problem.partition(": ")[2] for problem in problems] == [
        "the picture images/curve.png isn't there",
        "the picture images/webui-runs.en.png has no alternative text",
    ]
