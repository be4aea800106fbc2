"""What a project can be called."""

from __future__ import annotations

import re
import unicodedata

from simpletuner.webui.project_data import SUFFIX
from simpletuner.webui.stored import ProjectError

MOST_CHARACTERS, MOST_BYTES = 100, 200
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # devices on Windows


def checked_name(name: str) -> str:
    """The name, if a project can have it; :class:`ProjectError` otherwise."""
    if len(name) > MOST_CHARACTERS or len(name.encode("utf-8", "replace")) > MOST_BYTES:
        raise ProjectError(f"{name[:20]!r}... is too long for a name. Use at most {MOST_CHARACTERS} characters.")
    if not name or not all(map(_fits, name)) or not _fits_first(name[0]) or name.endswith((" ", ".")):
        mend = "Use letters, digits, spaces and . - _, a letter or digit first."
        raise ProjectError(f"{name!r} can't be the name of a project. {mend}")
    if name.lower().endswith((SUFFIX, ".json")) or _RESERVED.fullmatch(name):
        raise ProjectError(f"{name!r} can't be the name of a project: such names have another meaning. Change it.")
    return name


def _fits_first(character: str) -> bool:
    return character.isalnum() or character == "_"


def _fits(character: str) -> bool:
    """Letters of any script, with the marks that belong to them (as in Devanagari), digits, and a few signs."""
    return _fits_first(character) or character in " .-" or unicodedata.category(character).startswith("M")
