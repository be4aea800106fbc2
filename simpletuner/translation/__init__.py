"""The WebUI's words in other languages, from the gettext catalogues in this folder.

``_ = translator("es")``, then ``_("Save")`` and ``_("{count} steps").format(count=3)``. The catalogues are made and
kept up to date by :mod:`simpletuner.translation.catalogues`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from babel.messages.pofile import read_po

LANGUAGES: dict[str, str] = {"en": "English", "es": "Español", "zh": "中文", "hi": "हिन्दी", "ja": "日本語"}
"""The languages of the WebUI, by what they call themselves. English is the one that texts are written in."""

FOLDER = Path(__file__).parent


def catalogue_file(language: str, folder: Path = FOLDER) -> Path:
    """The catalogue of a language, whether it is there or not."""
    return folder / f"{language}.po"


@cache
def read_translations(file: Path) -> Mapping[str, str]:
    """What a catalogue translates, by the English text. Missing and fuzzy translations are left out."""
    with file.open("rb") as opened:
        catalogue = read_po(opened, abort_invalid=True)
    return {
        message.id: message.string
        for message in catalogue
        if isinstance(message.id, str) and isinstance(message.string, str)
        if message.id and message.string and not message.fuzzy
    }


def translator(language: str) -> Callable[[str], str]:
    """A function from an English text to the same in ``language``.

    A text that the catalogue lacks stays English; so does every text in a language that isn't one of
    :data:`LANGUAGES`. The catalogue is read once.
    """
    if language == "en" or language not in LANGUAGES:
        return marked
    texts = read_translations(catalogue_file(language))

    def translate(text: str) -> str:
        return texts.get(text, text)

    return translate


def sentences(texts: Iterable[str], language: str) -> str:
    """The texts one after the other; Chinese and Japanese have no space between sentences."""
    return ("" if language in ("zh", "ja") else " ").join(texts)


def marked(text: str) -> str:
    """The text itself: marks one, in a table of a module, that is translated only where it is shown."""
    return text
