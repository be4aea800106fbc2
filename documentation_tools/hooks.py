"""What mkdocs does differently here, page by page.

- A heading of a translation has the anchor of the English heading, so that links are the same in every language.
- Links to files of the repository that are no pages lead to copies of them in the site, under `files/`.
- Formulas become MathML, which browsers show without a script.
- The comments that only our tools read are left out.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import MutableMapping
from html import unescape
from pathlib import Path
from typing import Any

from documentation_tools.pages import ROOT, english_of, parse_page, read_page

FILES = "files"
SHOWN_AS_TEXT = (".py", ".toml", ".md", "")

_COMMENT = re.compile(r"<!--\s*(?:(?:result|context|en):.*?|/result)\s*-->")
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]`]|`[^`]*`)+)\]\((?P<path>\.\./[^)#\s]+)(?:#[^)\s]*)?\)")
_FORMULA = re.compile(r"<(span|div) class=\"arithmatex\">\\[(\[](.*?)\\[)\]]</\1>", re.DOTALL)
_linked: dict[str, Path] = {}


def on_page_markdown(markdown: str, *, page: Any, config: MutableMapping[str, Any], files: Any) -> str:
    source = Path(page.file.abs_src_path)
    english = english_of(source)
    if english != source and english.exists():
        markdown = with_anchors(markdown, [section.anchor for section in read_page(english).sections if section.level])
    return _COMMENT.sub("", with_copied_files(markdown, source, Path(config["docs_dir"]), page.url))


def on_page_content(html: str, *, page: Any, config: MutableMapping[str, Any], files: Any) -> str:
    return _FORMULA.sub(lambda found: as_mathml(found[2], block=found[1] == "div"), html)


def on_post_build(*, config: MutableMapping[str, Any]) -> None:
    for name, file in _linked.items():
        copy = Path(config["site_dir"]) / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def with_anchors(markdown: str, anchors: list[str]) -> str:
    """The page with these anchors at its headings, in order."""
    lines = markdown.splitlines()
    headings = [section for section in parse_page(markdown, Path()).sections if section.level]
    for section, anchor in zip(headings, anchors, strict=False):
        lines[section.line - 1] = f"{lines[section.line - 1].rstrip()} {{: #{anchor} }}"
    return "\n".join(lines) + "\n"


def with_copied_files(markdown: str, source: Path, pages: Path, url: str) -> str:
    """The page with its links out of the folder of pages turned to copies in the site; to a folder there is no link."""

    def copied(found: re.Match[str]) -> str:
        file = (source.parent / found["path"]).resolve()
        if file.is_relative_to(pages.resolve()):
            return found[0]
        if not file.is_file():
            return found["text"]
        name = f"{FILES}/{file.relative_to(ROOT).as_posix()}" + ".txt" * (file.suffix in SHOWN_AS_TEXT)
        _linked[name] = file
        return f'<a href="{posixpath.relpath(name, posixpath.dirname(url))}">{found["text"]}</a>'

    return _LINK.sub(copied, markdown)


def as_mathml(formula: str, *, block: bool) -> str:
    from latex2mathml.converter import convert  # of the extra `docs`

    return convert(unescape(formula), display="block" if block else "inline")
