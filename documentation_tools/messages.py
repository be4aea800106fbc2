"""Whether the error messages that a page quotes are those of the sources, and those of the sources are quoted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from documentation_tools.pages import ROOT, Page
from documentation_tools.shell_blocks import CHECKERS

_GAP = "\0"
_WORDS = 3
_PROBLEMS = {"Problem", "warning"}
_LEAST = 30  # letters in a message of its own; shorter ones only join what other messages say
_ENOUGH = 12  # letters of a quotation that tell one message from the others


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


def unexplained_messages(page: Page, folders: Iterable[str]) -> list[str]:
    """What is raised or reported in these folders of the package, and is quoted nowhere on the page, one a line."""
    words = [word for section in page.sections for word in section.words if is_message(word)]
    quoted = [_pattern(word) for word in words if len(word.replace("…", "").strip(" .:")) >= _ENOUGH]
    files = (file for folder in folders for file in sorted((ROOT / "simpletuner" / folder).rglob("*.py")))
    return [
        f"{file.relative_to(ROOT)}, line {line}: {message.replace(_GAP, '…')}"
        for file in files
        for line, message in _told(file)
        if not any(pattern is not None and pattern.search(message) for pattern in quoted)
    ]


def is_message(word: str) -> bool:
    parts = word.split()
    return len(parts) >= _WORDS and parts[0] not in CHECKERS and not word.startswith(("{", "[", '"', "-"))


def is_known(quoted: str) -> bool:
    """Whether the fixed parts of a quotation stand in one message, in order; or the message fits it as a whole."""
    pattern = _pattern(quoted)
    if pattern is None:
        return False
    return any(pattern.search(message) for message in messages()) or any(
        whole.search(quoted) for whole in filled_in_messages()
    )


def _pattern(quoted: str) -> re.Pattern[str] | None:
    """The fixed parts of a quotation, in order; None if all of it varies."""
    parts = [part.strip(" .:") for part in re.split(r"…|\.\.\.|\{[^}]*\}|<[^>]*>", quoted)]
    parts = [part for part in parts if part]
    return re.compile(".*".join(map(re.escape, parts)), re.DOTALL) if parts else None


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
    nodes = ast.walk(ast.parse(file.read_bytes()))
    return (text for node in nodes if (text := _text(node)) is not None)


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _told(file: Path) -> Iterator[tuple[int, str]]:
    """The messages of what a file raises, and of the problems that it reports, with their lines.

    A message may have a name of its own in its function first. What other functions give it isn't followed.
    """
    for function in ast.walk(ast.parse(file.read_bytes())):
        if not isinstance(function, ast.FunctionDef):
            continue
        named = list(_named_texts(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                said = node.exc.args[:1]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _PROBLEMS:
                said = node.args[1:2]
            else:
                continue
            for text in said:
                own = [found for name, found in named if isinstance(text, ast.Name) and text.id == name]
                for message in filter(None, [_text(text), *own]):
                    if len(message.replace(_GAP, "").strip()) >= _LEAST:
                        yield node.lineno, message


def _named_texts(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """The texts that a function gives a name, with it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            text = _text(node.value)
            if text is not None:
                yield node.targets[0].id, text
