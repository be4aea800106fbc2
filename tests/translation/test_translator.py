from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from babel import Locale
from babel.messages.pofile import PoFileError

from simpletuner.translation import FOLDER, LANGUAGES, catalogue_file, marked, read_translations, translator

CATALOGUE = """\
msgid ""
msgstr "Content-Type: text/plain; charset=utf-8\\n"

msgid "Save"
msgstr "Guardar"

msgid "{count} steps"
msgstr "{count} pasos"

msgid "Stop"
msgstr ""

#, fuzzy
msgid "Start the run"
msgstr "Parar la ejecución"

#~ msgid "Gone"
#~ msgstr "Ido"
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = catalogue_file("es", tmp_path)
    path.write_text(CATALOGUE, encoding="utf-8")
    return path


def test_only_what_is_surely_translated_is_read(catalogue: Path) -> None:
    assert read_translations(catalogue) == {"Save": "Guardar", "{count} steps": "{count} pasos"}


def test_a_broken_catalogue_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "es.po"
    broken.write_text('msgid "Save"\nmsgstr "Guardar\nGuardar\n', encoding="utf-8")
    with pytest.raises(PoFileError):
        read_translations(broken)


def test_languages_are_named_in_themselves() -> None:
    for language, name in LANGUAGES.items():
        assert Locale.parse(language).get_language_name(language).lower() == name.lower()
    assert {path.stem for path in FOLDER.glob("*.po")} == set(LANGUAGES) - {"en"}


@pytest.mark.parametrize(("language", "expected"), [("es", "Tasa de aprendizaje"), ("zh", "学习率")])
def test_a_text_is_translated(language: str, expected: str) -> None:
    assert translator(language)("Learning rate") == expected


@pytest.mark.parametrize("language", [*LANGUAGES, "eo", "", "../es", "zh-CN"])
def test_what_is_not_translated_stays_english(language: str) -> None:
    translate = translator(language)
    assert translate("no text of any page") == "no text of any page"
    assert translate("") == "", "the header of the catalogue must not show"


@pytest.mark.parametrize("language", ["en", "eo", "zh-CN"])
def test_english_and_unknown_languages_are_english(language: str) -> None:
    assert translator(language)("Learning rate") == "Learning rate"


def test_marking_changes_nothing() -> None:
    assert marked("Learning rate") == "Learning rate"


def test_catalogues_are_read_when_they_are_needed() -> None:
    code = (
        "from simpletuner.translation import read_translations as read, translator\n"
        "assert read.cache_info().misses == 0\n"
        "for _ in range(3): translator('es')('Save')\n"
        "assert read.cache_info().misses == 1\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
