"""What the site does differently from mkdocs, and the check of what was built."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation_tools import hooks
from documentation_tools.pages import ROOT
from documentation_tools.site import markdown_parts, read_built, rendering_problems, site_problems

DOCUMENTATION = ROOT / "documentation"


def test_headings_of_a_translation_have_the_english_anchors() -> None:
    page = "# Título\n<!-- en: 0 -->\n\n```text\n# no heading\n```\n\n## Formatos\n"
    assert hooks.with_anchors(page, ["caches", "formats"]).splitlines() == [
        "# Título {: #caches }",
        "<!-- en: 0 -->",
        "",
        "```text",
        "# no heading",
        "```",
        "",
        "## Formatos {: #formats }",
    ]


@pytest.mark.parametrize(
    ("link", "on_site"),
    [
        ("[a](../benchmarks/RESULTS.md)", '<a href="../files/benchmarks/RESULTS.md.txt">a</a>'),
        (
            "[`a`](../config/examples/sd3-repa-lora.json)",
            '<a href="../files/config/examples/sd3-repa-lora.json">`a`</a>',
        ),
        ("[a](../config/examples)", "a"),
        ("[a](CACHING.md)", "[a](CACHING.md)"),
        ("![a](../benchmarks/a.png)", "![a](../benchmarks/a.png)"),
    ],
)
def test_links_out_of_the_pages_lead_to_copies(link: str, on_site: str) -> None:
    assert hooks.with_copied_files(link, DOCUMENTATION / "INDEX.md", DOCUMENTATION, "es/INDEX.html") == on_site


def test_comments_of_the_tools_are_left_out() -> None:
    text = "<!-- en: 01 -->a <!-- result: b / c -->1<!-- /result --> <!-- context: sd3 --><!-- kept -->"
    assert hooks._COMMENT.sub("", text) == "a 1 <!-- kept -->"


def build(site: Path, body: str, name: str = "PAGE.html") -> None:
    (site / name).parent.mkdir(parents=True, exist_ok=True)
    (site / name).write_text(f'<article class="md-content__inner">{body}</article>', encoding="utf-8")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<a href="NONE.html">a</a>', "NONE.html leads nowhere"),
        ('<a href="#none">a</a>', "#none leads to no anchor"),
        ('<a href="OTHER.html#none">a</a>', "OTHER.html#none leads to no anchor"),
        ('<img src="https://example.org/a.png">', "loads https://example.org/a.png"),
        ('<script src="//example.org/a.js"></script>', "loads //example.org/a.js"),
        ('<span class="arithmatex">x</span>', "1 formulas"),
    ],
)
def test_what_is_wrong_is_found(body: str, words: str, tmp_path: Path) -> None:
    build(tmp_path, '<h1 id="other">Other</h1>', "OTHER.html")
    build(tmp_path, body)
    problems = list(site_problems(tmp_path))
    assert len(problems) == 1 and problems[0].startswith("PAGE.html") and words in problems[0], problems


def test_what_is_right_passes(tmp_path: Path) -> None:
    build(tmp_path, '<h1 id="other">Other</h1>', "es/OTHER.html")
    build(
        tmp_path,
        '<a href="es/OTHER.html#other">a</a><a href="https://example.org">b</a><img src="es/OTHER.html"/>'
        '<link rel="canonical" href="https://example.org">',
    )
    assert list(site_problems(tmp_path)) == []


def test_an_empty_site_is_no_success(tmp_path: Path) -> None:
    assert "no pages" in next(site_problems(tmp_path))


def test_parts_are_counted_in_the_article(tmp_path: Path) -> None:
    body = '<img src="a.png"/><ul><li>a</li></ul><div class="doc doc-object"><ul><li>b</li></ul></div><pre>c</pre>'
    build(tmp_path, body)
    (tmp_path / "PAGE.html").write_text((tmp_path / "PAGE.html").read_text() + "<ul><li>d</li></ul>")
    assert read_built(tmp_path / "PAGE.html").parts == markdown_parts("- a\n\n```text\nc\n```\n")


def test_a_list_that_python_markdown_does_not_see_is_found(tmp_path: Path) -> None:
    pages = tmp_path / "documentation"
    pages.mkdir()
    (pages / "PAGE.md").write_text("# A\n\nText\n- a\n- b\n", encoding="utf-8")
    (pages / "PAGE.es.md").write_text("# A\n\nTexto\n\n- a\n- b\n", encoding="utf-8")
    build(tmp_path / "site", "<p>Text - a - b</p>")
    build(tmp_path / "site", "<p>Texto</p><ul><li>a</li><li>b</li></ul>", "es/PAGE.html")
    assert list(rendering_problems(tmp_path / "site", tmp_path)) == [
        "documentation/PAGE.md: 0 <ul> on the site, 1 in CommonMark",
        "documentation/PAGE.md: 0 <li> on the site, 2 in CommonMark",
    ]
