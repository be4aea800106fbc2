"""The words of the generated pages that aren't those of options: `words.json`, by language and English text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

WORDS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def words_of(language: str) -> Callable[[str], str]:
    """A function from an English text of this table to the same in ``language``; KeyError for one that isn't in it."""
    if language == "en":
        return lambda text: text
    table = WORDS[language]
    return lambda text: table[text]
