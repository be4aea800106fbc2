"""Whether the error messages that a page quotes are those of the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from documentation_tools.pages import ROOT, Page
from documentation_tools.shell_blocks import CHECKERS

_GAP = "\0"
_WORDS = 3


def unknown_messages(page: Page) -> list[str]:
    """Quoted messages that no source has, one a line.

    What stands in backticks is a message if it has at least three words and is no command, no JSON and no setting. The
    parts that vary may be left out with `…` or written as `{name}` or `<name>`, or be filled in.
    """
    return [
        f"{page.path.name}, line {section.line}: no message of ours is {word!r}"
        for section in page.sections
        for word in section.words
        if is_message(word) and not is_known(word)
    ]


def is_message(word: str) -> bool:
    parts = word.split()
    return len(parts) >= _WORDS and parts[0] not in CHECKERS and not word.startswith(("{", "[", '"', "-"))


def is_known(quoted: str) -> bool:
    """Whether the fixed parts of a quotation stand in one message, in order; or the message fits it as a whole."""
    parts = [part.strip(" .:") for part in re.split(r"…|\.\.\.|\{[^}]*\}|<[^>]*>", quoted)]
    parts = [part for part in parts if part]
    if not parts:
        return False
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(message) for message in messages()) or any(
        whole.search(quoted) for whole in filled_in_messages()
    )


@cache
def messages() -> tuple[str, ...]:
    """Every text of the package's sources; what varies in it is one sign that no quotation has."""
    return tuple(text for file in sorted((ROOT / "simpletuner").rglob("*.py")) for text in _texts(file))


@cache
def filled_in_messages() -> tuple[re.Pattern[str], ...]:
    """The texts with something that varies, as patterns of what they become."""
    varied = (text for text in messages() if _GAP in text and len(text.replace(_GAP, "").strip()) >= 12)
    return tuple(re.compile(".+?".join(map(re.escape, text.rstrip(". ").split(_GAP))), re.DOTALL) for text in varied)


def _texts(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else _GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
