"""Checks the site that mkdocs built: `python -m documentation_tools.site [FOLDER]`.

Every link within it must lead to a file and an anchor that are there; nothing may be loaded from elsewhere; and a page
must have the lists, tables and blocks of code that its Markdown has by CommonMark, from which Python-Markdown differs.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from documentation_tools.pages import DOCUMENTATION, LANGUAGES, ROOT, page_files, parser, translation_of

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
COUNTED = ("ul", "ol", "li", "table", "tr", "pre")
_NOT_LOADED = {"canonical", "alternate", "prev", "next"}
_VOID = {"img", "br", "hr", "input", "link", "meta", "source", "area", "base", "col", "embed", "track", "wbr"}


@dataclass
class Built:
    """What of an HTML page is checked."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    raw_formulas: int = 0


class _Reader(HTMLParser):
    """Reads a page; parts are counted in its article, without what mkdocstrings made."""

    def __init__(self) -> None:
        super().__init__()
        self.built = Built()
        self._article = 0
        self._reference = 0
        self._open: list[tuple[str, bool, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.built.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.built.links.append(values["href"])
        if not (tag == "link" and set(values.get("rel", "").split()) & _NOT_LOADED):
            self.built.loaded.extend(values[name] for name in values if (tag, name) in LOADED)
        classes = values.get("class", "").split()
        self.built.raw_formulas += "arithmatex" in classes
        opens_article = tag == "article" and "md-content__inner" in classes
        opens_reference = "doc" in classes and "doc-object" in classes
        if tag in COUNTED and self._article and not self._reference:
            self.built.parts[tag] += 1
        if tag not in _VOID:
            self._open.append((tag, opens_article, opens_reference))
            self._article += opens_article
            self._reference += opens_reference

    def handle_endtag(self, tag: str) -> None:
        while any(opened == tag for opened, _, _ in self._open):
            opened, article, reference = self._open.pop()
            self._article -= article
            self._reference -= reference
            if opened == tag:
                break


def read_built(file: Path) -> Built:
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.built


def site_problems(site: Path) -> Iterator[str]:
    """Broken links and anchors within the site, and what it loads from elsewhere; one a line."""
    pages = {file.resolve(): read_built(file) for file in site.rglob("*.html")}
    if not pages:
        yield f"{site} has no pages; build them first"
    for file, built in pages.items():
        name = file.relative_to(site.resolve())
        yield from (f"{name}: loads {address}" for address in built.loaded if urlsplit(address).netloc)
        if built.raw_formulas:
            yield f"{name}: {built.raw_formulas} formulas are not shown as such"
        for link in built.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else file.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                yield f"{name}: {link} leads nowhere"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name}: {link} leads to no anchor"


def rendering_problems(site: Path, root: Path = ROOT) -> Iterator[str]:
    """Pages in which Python-Markdown made other lists, tables or blocks of code than CommonMark does; one a line."""
    for english in page_files(root, "en"):
        if not english.is_relative_to(root / DOCUMENTATION):
            continue
        name = english.relative_to(root / DOCUMENTATION).with_suffix(".html")
        for language in LANGUAGES:
            source = translation_of(english, language)
            built = site / (name if language == "en" else Path(language) / name)
            if source.exists() and built.exists():
                expected = markdown_parts(source.read_text(encoding="utf-8"))
                found = read_built(built).parts
                yield from (
                    f"{source.relative_to(root)}: {found[part]} <{part}> on the site, {expected[part]} in CommonMark"
                    for part in COUNTED
                    if found[part] != expected[part]
                )


def markdown_parts(markdown: str) -> Counter[str]:
    """How many lists, items, tables, rows and blocks of code a page has by CommonMark."""
    tags = {"fence": "pre", "code_block": "pre", "bullet_list_open": "ul", "ordered_list_open": "ol"}
    tags |= {"list_item_open": "li", "table_open": "table", "tr_open": "tr"}
    return Counter(tags[token.type] for token in parser().parse(markdown) if token.type in tags)


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = argparse.ArgumentParser(prog="python -m documentation_tools.site", description=__doc__)
    parsed.add_argument("folder", nargs="?", type=Path, default=ROOT / "site")
    chosen = parsed.parse_args(arguments)
    problems = [*site_problems(chosen.folder), *rendering_problems(chosen.folder)]
    print("\n".join(problems) or f"{chosen.folder}: links, anchors and parts of every page are as they must be.")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
