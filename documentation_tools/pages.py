"""A Markdown page as data: its sections, and what stands in each. Nothing here looks at another page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
DOCUMENTATION = "documentation"
LANGUAGES = ("en", "es", "zh", "hi", "ja")
TRANSLATIONS = LANGUAGES[1:]
GENERATED = ("OPTIONS", "FAMILIES")
"""Pages that `documentation_tools.generate` writes whole, in every language."""

_SUFFIX = re.compile(rf"\.({'|'.join(TRANSLATIONS)})$")
_CONTEXT = re.compile(r"<!--\s*context:\s*(\S+)\s*-->")
_MARK = re.compile(r"<!--\s*en:\s*(\S+)\s*-->")
_ANCHOR = re.compile(r"<a\s+(?:id|name)=[\"']([^\"']+)[\"']")
_OWN_ANCHOR = re.compile(r"\s*\{:?\s*#([\w-]+)\s*\}\s*$")


@dataclass(frozen=True)
class Code:
    """A fenced block. `context` is what the nearest comment `<!-- context: … -->` before it says, or nothing."""

    info: str
    text: str
    line: int
    context: str = ""


@dataclass(frozen=True)
class Table:
    """A table's rows, the headings first, as Markdown."""

    rows: tuple[tuple[str, ...], ...]
    line: int


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, up to the next heading of any level.

    Attributes:
        level: 1 to 6; 0 for what stands before the first heading.
        anchor: what a link to it names, as the site makes it.
        text: the Markdown below the heading.
        mark: the hash in `<!-- en: … -->`, of the English section that a translation was made from.
        words: what stands in backticks. links: targets, without those of images.
        names: the anchors that HTML in it sets.
    """

    level: int
    heading: str
    anchor: str
    line: int
    text: str = ""
    mark: str = ""
    code: list[Code] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A page and its sections in order. `language` is that of its file's name."""

    path: Path
    source: str
    sections: tuple[Section, ...]

    @property
    def language(self) -> str:
        return language_of(self.path)

    @property
    def anchors(self) -> set[str]:
        """What a link to this page may name after `#`, if it isn't a translation."""
        found = {section.anchor for section in self.sections if section.level}
        return found.union(*(section.names for section in self.sections))

    @property
    def code(self) -> list[Code]:
        return [code for section in self.sections for code in section.code]


def language_of(path: Path) -> str:
    """The language in a file's name: `index.es.md` is Spanish, `index.md` English."""
    found = _SUFFIX.search(path.stem)
    return found[1] if found else "en"


def english_of(path: Path) -> Path:
    """The English page of a page in any language."""
    return path.with_name(_SUFFIX.sub("", path.stem) + path.suffix)


def translation_of(english: Path, language: str) -> Path:
    """Where the translation of an English page lies."""
    return english if language == "en" else english.with_name(f"{english.stem}.{language}{english.suffix}")


def page_files(root: Path = ROOT, language: str | None = None) -> list[Path]:
    """The README and every page of the documentation, in all languages or in one."""
    files = [*root.glob("README*.md"), *sorted((root / DOCUMENTATION).rglob("*.md"))]
    return [file for file in files if language in (None, language_of(file))]


def read_page(path: Path) -> Page:
    return parse_page(path.read_text(encoding="utf-8"), path)


def parse_page(source: str, path: Path) -> Page:
    """Reads Markdown as CommonMark with tables."""
    tokens = parser().parse(source)
    lines = source.splitlines()
    starts = [i for i, token in enumerate(tokens) if token.type == "heading_open" and token.level == 0]
    bounds = [0, *starts, len(tokens)]
    taken: set[str] = set()
    sections, context = [], ""
    for first, last in pairwise(bounds):
        part = tokens[first:last]
        if not part:
            continue
        following = tokens[last].map if last < len(tokens) else None
        section = _section(part, lines, following[0] if following else len(lines), taken)
        context = _fill(section, part, context)
        sections.append(section)
    return Page(path, source, tuple(sections))


def parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def slug(heading: str) -> str:
    """A heading's anchor, as Python-Markdown makes it: what isn't ASCII falls away."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def unique(anchor: str, taken: set[str]) -> str:
    """The anchor, with a number behind it where it is taken already, or empty."""
    number = 1
    found = anchor
    while found in taken or not found:
        found, number = f"{anchor}_{number}", number + 1
    taken.add(found)
    return found


def _section(tokens: list[Token], lines: list[str], end: int, taken: set[str]) -> Section:
    opening = tokens[0]
    if opening.type != "heading_open" or opening.map is None:
        return Section(0, "", "", 1, "\n".join(lines[:end]).strip())
    inline = tokens[1]
    shown = "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))
    own = _OWN_ANCHOR.search(shown)
    text = "\n".join(lines[opening.map[1] : end]).strip()
    mark = _MARK.match(text)
    return Section(
        level=int(opening.tag[1]),
        heading=_OWN_ANCHOR.sub("", inline.content),
        anchor=unique(own[1] if own else slug(shown), taken),
        line=opening.map[0] + 1,
        text=text if mark is None else text[mark.end() :].strip(),
        mark="" if mark is None else mark[1],
    )


def _fill(section: Section, tokens: list[Token], context: str) -> str:
    """Puts what stands in the tokens into the section; returns the context at its end."""
    line = section.line
    for index, token in enumerate(tokens):
        if token.map is not None:
            line = token.map[0] + 1
        if token.type == "fence":
            section.code.append(Code(token.info.strip(), token.content, line, context))
        elif token.type == "table_open":
            section.tables.append(Table(tuple(_rows(tokens[index:])), line))
        for piece in [token, *(token.children or ())]:
            if piece.type in ("html_block", "html_inline"):
                context = [context, *_CONTEXT.findall(piece.content)][-1]
                section.names.extend(_ANCHOR.findall(piece.content))
            elif piece.type == "code_inline":
                section.words.append(piece.content)
            elif piece.type == "link_open":
                section.links.append(unquote(str(piece.attrs["href"])))
            elif piece.type == "image":
                section.images.append((unquote(str(piece.attrs["src"])), piece.content))
    return context


def _rows(tokens: list[Token]) -> Iterator[tuple[str, ...]]:
    cells: list[str] = []
    for token in tokens:
        if token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token.content)
        elif token.type == "tr_close":
            yield tuple(cells)
        elif token.type == "table_close":
            return
