"""Pages as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation_tools.pages import ROOT, english_of, language_of, page_files, parse_page, slug, translation_of

PAGE = """\
# Título: a `b_c`, *d*
<!-- en: 0123456789 -->

Text with `code`, [a link](OTHER.md#there) and ![a picture](images/a.png).

## Same
<!-- context: wan -->

```json
{"a": 1}
```

## Same

| A | B |
|---|---:|
| <a id="row"></a>`x` | 1 |
"""


def test_sections_hold_what_stands_in_them() -> None:
    page = parse_page(PAGE, Path("A.md"))
    title, first, second = page.sections
    assert (title.level, title.anchor, title.mark, title.line) == (1, "titulo-a-b_c-d", "0123456789", 1)
    assert title.words == ["b_c", "code"]
    assert title.links == ["OTHER.md#there"]
    assert title.images == [("images/a.png", "a picture")]
    assert title.text.startswith("Text with")
    assert (first.anchor, first.code[0].info, first.code[0].context) == ("same", "json", "wan")
    assert second.anchor == "same_1"
    assert second.tables[0].rows == (("A", "B"), ('<a id="row"></a>`x`', "1"))
    assert page.anchors == {"titulo-a-b_c-d", "same", "same_1", "row"}


def test_a_context_holds_until_the_next_one() -> None:
    text = """\
# A

<!-- context: wan -->

```json
1
```

## B

```json
2
```

<!-- context: sd1x -->

```json
3
```
"""
    assert [code.context for code in parse_page(text, Path("A.md")).code] == ["wan", "wan", "sd1x"]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("1. Choose the images", "1-choose-the-images"), ("`config.json`: what?", "configjson-what"), ("中文", "")],
)
def test_anchors_are_those_of_python_markdown(heading: str, anchor: str) -> None:
    from markdown.extensions.toc import slugify

    assert slug(heading.replace("`", "")) == anchor == slugify(heading.replace("`", ""), "-")


def test_languages_are_in_file_names() -> None:
    spanish = Path("documentation/CACHING.es.md")
    assert language_of(spanish) == "es"
    assert english_of(spanish) == Path("documentation/CACHING.md")
    assert translation_of(english_of(spanish), "ja") == Path("documentation/CACHING.ja.md")
    assert {language_of(file) for file in page_files(ROOT, "zh")} == {"zh"}
    assert ROOT / "README.md" in page_files(ROOT, "en")


def test_every_page_begins_with_its_only_title() -> None:
    for file in page_files():
        page = parse_page(file.read_text(encoding="utf-8"), file)
        assert [section.level for section in page.sections].count(1) == 1, file
        assert page.sections[0].level == 1, file
        assert all(section.level <= 3 for section in page.sections), file
