"""Whether translations are in step with their English pages: `python -m documentation_tools.translations status`.

A translation carries, after each heading, `<!-- en: HASH -->`: the hash of the English section that it was made from.
`stamp PAGE …` writes those hashes, once a page has been brought up to date.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from documentation_tools.pages import (
    GENERATED,
    ROOT,
    TRANSLATIONS,
    Page,
    Section,
    english_of,
    page_files,
    parse_page,
    parser,
    read_page,
    translation_of,
)
from documentation_tools.results import without_values

OPTION_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")
_ENGLISH_PICTURE = re.compile(r"\.en(?=\.\w+$)")
_MARK_LINE = re.compile(r"<!--\s*en:\s*\S+\s*-->")


def section_hash(section: Section) -> str:
    """What an English section is known by in its translations; figures that are filled in don't count."""
    content = f"{'#' * section.level} {section.heading}\n{without_values(section.text)}"
    lines = "\n".join(line.rstrip() for line in content.splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:10]


def outdated(english: Page, translation: Page) -> list[str]:
    """The English headings whose translation isn't made from the section as it is now; a line each."""
    pairs = zip(english.sections, translation.sections, strict=False)
    return [
        f"{_name(translation)}, line {theirs.line}: made from another version of {ours.heading!r}; its hash is now "
        f"{section_hash(ours)}"
        for ours, theirs in pairs
        if theirs.mark != section_hash(ours)
    ]


def differences(english: Page, translation: Page) -> list[str]:
    """Where the structure differs: headings, blocks of code, tables, options, links and pictures; a line each."""
    name = _name(translation)
    ours, theirs = ([section.level for section in page.sections] for page in (english, translation))
    if ours != theirs:
        headings = len(english.sections), len(translation.sections)
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(headings))
        at = english.sections[place].heading if place < headings[0] else translation.sections[place].heading
        return [f"{name}: headings differ ({headings[0]} in English, {headings[1]} here), first at {at!r}"]
    return [
        f"{name}, line {there.line}: {problem}"
        for here, there in zip(english.sections, translation.sections, strict=True)
        for problem in _section_differences(here, there, translation)
    ]


def _section_differences(ours: Section, theirs: Section, translation: Page) -> Iterator[str]:
    if [(code.info, code.text, code.context) for code in ours.code] != [
        (code.info, code.text, code.context) for code in theirs.code
    ]:
        yield f"the blocks of code aren't those of {ours.heading!r}"
    for kind, a, b in (
        ("table sizes (rows, columns)", _sizes(ours), _sizes(theirs)),
        ("options", _options(ours), _options(theirs)),
        ("links", sorted(ours.links), sorted(theirs.links)),
        ("pictures", _pictures(ours, translation), [target for target, _ in theirs.images]),
    ):
        if a != b:
            missing = [item for item in a if item not in b]
            more = [item for item in b if item not in a]
            told = [f"missing {missing}"] * bool(missing) + [f"superfluous {more}"] * bool(more)
            yield f"{kind} differ from {ours.heading!r}: {', '.join(told) or f'{a} in English, {b} here'}"


def _sizes(section: Section) -> list[tuple[int, int]]:
    return [(len(table.rows), len(table.rows[0])) for table in section.tables]


def _options(section: Section) -> list[str]:
    return sorted({word for word in section.words if OPTION_NAME.fullmatch(word)})


def _pictures(section: Section, translation: Page) -> list[str]:
    """The pictures of an English section as a translation names them: those of its language, where there are any."""
    own = [_ENGLISH_PICTURE.sub(f".{translation.language}", target) for target, _ in section.images]
    english = [target for target, _ in section.images]
    folder = translation.path.parent
    return [
        target if (folder / target).exists() or not (folder / original).exists() else original
        for target, original in zip(own, english, strict=True)
    ]


def missing_pages(language: str, root: Path = ROOT) -> list[Path]:
    """English pages that have no translation yet."""
    return [page for page in page_files(root, "en") if not translation_of(page, language).exists()]


def translated_pages(language: str, root: Path = ROOT) -> list[tuple[Page, Page]]:
    """The English page and its translation, of all that are there and aren't generated."""
    files = [file for file in page_files(root, language) if english_of(file).stem not in GENERATED]
    return [(read_page(english_of(file)), read_page(file)) for file in files if english_of(file).exists()]


def strays(root: Path = ROOT) -> list[Path]:
    """Translations of pages that aren't there."""
    return [file for file in page_files(root) if not english_of(file).exists()]


def stamped(page: Page, english: Page) -> str:
    """The translation with the hash of its English section after each heading. ValueError unless they are in step."""
    problems = differences(english, page)
    if problems:
        raise ValueError("\n".join(problems))
    lines = [line for line in page.source.splitlines() if not _MARK_LINE.fullmatch(line.strip())]
    plain = "\n".join(lines)
    headings = [token for token in parser().parse(plain) if token.type == "heading_open" and token.level == 0]
    sections = [section for section in english.sections if section.level]
    for token, section in reversed(list(zip(headings, sections, strict=True))):
        assert token.map is not None
        lines.insert(token.map[1], f"<!-- en: {section_hash(section)} -->")
    return "\n".join(lines) + "\n"


def _name(page: Page) -> str:
    return page.path.relative_to(ROOT).as_posix() if page.path.is_relative_to(ROOT) else page.path.name


def status(root: Path = ROOT) -> Iterator[str]:
    """What is missing and what is out of date, language by language."""
    for language in TRANSLATIONS:
        missing = missing_pages(language, root)
        pairs = translated_pages(language, root)
        behind = [problem for pair in pairs for problem in [*differences(*pair), *outdated(*pair)]]
        total = len(page_files(root, "en"))
        yield f"{language}: {total - len(missing)} of {total} pages, {len(behind)} places out of date"
        yield from (f"  missing: {translation_of(page, language).relative_to(root)}" for page in missing)
        yield from (f"  {problem}" for problem in behind)


def stamp(files: Iterable[Path]) -> None:
    for file in files:
        if not english_of(file).exists() or english_of(file) == file:
            raise ValueError(f"{file} is no translation of a page.")
        if english_of(file).stem in GENERATED:
            raise ValueError(f"{file} is written by documentation_tools.generate, and has no hashes.")
        page = parse_page(file.read_text(encoding="utf-8"), file.resolve())
        file.write_text(stamped(page, read_page(english_of(file))), encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = argparse.ArgumentParser(prog="python -m documentation_tools.translations", description=__doc__)
    commands = parsed.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="list missing and outdated pages by language")
    marking = commands.add_parser("stamp", help="write the hashes into pages that were brought up to date")
    marking.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    chosen = parsed.parse_args(arguments)
    if chosen.command == "status":
        print("\n".join(status()))
        return 0
    try:
        stamp(chosen.pages)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
