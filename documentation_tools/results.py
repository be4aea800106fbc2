"""The figures of `benchmarks/RESULTS.md`, and the places in pages that quote them.

A page quotes a figure as `<!-- result: SECTION / FIGURE -->…<!-- /result -->`. SECTION is the mark in RESULTS.md.
FIGURE is a row, with ` / COLUMN` behind it for another column than the first; or words of the section's text, and the
next number is meant. The unit is left to the page.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from documentation_tools.pages import ROOT, parse_page

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
QUOTE = re.compile(r"(?<!`)(<!--\s*result:\s*(?P<section>.+?) / (?P<figure>.+?)\s*-->)(?P<value>.*?)(<!-- /result -->)")
_NUMBER = r"[-+]?\d[\d.]*(?:e[-+]?\d+)?"
_WITH_UNIT = re.compile(rf"([≤≥]?\s*{_NUMBER}) (?!±)\S.*")
_SECTION = re.compile(r"<!-- (?P<name>[^/].*?) -->\n(?P<text>.*?)<!-- /(?P=name) -->", re.DOTALL)


class Results:
    """The recorded figures by section."""

    def __init__(self, text: str) -> None:
        self.sections = {found["name"]: found["text"] for found in _SECTION.finditer(text)}

    @classmethod
    def read(cls, path: Path = RESULTS) -> Results:
        return cls(path.read_text(encoding="utf-8"))

    @cached_property
    def rows(self) -> dict[tuple[str, str], dict[str, str]]:
        """Each row's cells by its column's heading, by section and the row's name."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for name, text in self.sections.items():
            for section in parse_page(text, Path(name)).sections:
                for table in section.tables:
                    headings, *rows = table.rows
                    for row in rows:
                        found.setdefault((name, row[0]), dict(zip(headings[1:], row[1:], strict=False)))
        return found

    def value(self, section: str, figure: str) -> str:
        """One figure without its unit. ValueError if it isn't there."""
        if section not in self.sections:
            raise ValueError(f"RESULTS.md has no section {section!r}; it has {', '.join(self.sections)}.")
        row, _, column = figure.rpartition(" / ")
        if (section, figure) in self.rows:
            cell = next(iter(self.rows[section, figure].values()))
        elif column in self.rows.get((section, row), ()):
            cell = self.rows[section, row][column]
        else:
            said = re.search(rf"{re.escape(figure)}\s+(\+?{_NUMBER}%?)", self.sections[section])
            if said is None:
                raise ValueError(f"RESULTS.md has no figure {figure!r} in its section {section!r}.")
            cell = said[1].rstrip(".")
        with_unit = _WITH_UNIT.fullmatch(cell)
        return with_unit[1] if with_unit else cell

    def fill_in(self, page: str) -> str:
        """The page with every quoted figure as it is recorded. ValueError for one that isn't there."""

        def quoted(found: re.Match[str]) -> str:
            return f"{found[1]}{self.value(found['section'], found['figure'])}{found[5]}"

        return QUOTE.sub(quoted, page)


def without_values(text: str) -> str:
    """The text with every quoted figure left out, to compare what was written by hand."""
    return QUOTE.sub(lambda found: f"{found[1]}{found[5]}", text)
