from __future__ import annotations

import ast
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog

from simpletuner.configuration import Config, describe_all
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.translation import FOLDER, catalogue_file
from simpletuner.translation.catalogues import (
    PACKAGE,
    collect,
    main,
    read_catalogue,
    shortcomings,
    source_texts,
    translating_calls,
    translations,
    update,
    update_files,
    written,
)

PAGE = """
from simpletuner.translation import marked

STATES = {"killed": marked("Killed")}

def page(words, look):
    _ = look._
    ui.button(_("Save"))
    ui.label(look.words("{count} steps, "
                        "{time} left").format(count=3, time=_("unknown")))
    ui.label(_(info.help) + words(TITLES["crepa"]))
    ui.button(_("On" if value else "Off"))
    for _unused in range(3):
        ui.label("not marked")
"""


def texts(catalogue: Catalog) -> list[str]:
    return [message.id for message in catalogue if message.id]


def make(**translated: str) -> Catalog:
    catalogue = Catalog()
    for text, translation in translated.items():
        catalogue.add(text, translation)
    return catalogue


def reread(catalogue: Catalog, folder: Path) -> Catalog:
    path = folder / "es.po"
    path.write_text(written(catalogue, "es"), encoding="utf-8")
    return read_catalogue(path)


def test_every_text_of_the_options_is_collected() -> None:
    collected = texts(collect())
    for model in (Config, DatasetEntry, VideoOptions):
        for info in describe_all(model):
            wanted = {info.label, info.help, info.tab, info.section, info.group, info.part} - {None}
            assert wanted <= set(collected), info.name
    assert collected.index("Model family") < collected.index("Learning rate") < collected.index("Frame stride")


def test_texts_say_where_they_are() -> None:
    template = collect()
    weight, tab = template["Weight"], template["Basic"]
    assert weight and weight.auto_comments == ["crepa_lambda: label", "urepa_lambda: label", "layersync_lambda: label"]
    assert tab and tab.auto_comments == ["heading"]
    assert not any(line for message in template for _file, line in message.locations)


def test_texts_marked_in_sources_are_found(tmp_path: Path) -> None:
    page = tmp_path / "simpletuner" / "webui" / "pages" / "page.py"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE, encoding="utf-8")
    found = ["Killed", "Save", "{count} steps, {time} left", "unknown", "On", "Off"]
    assert [*source_texts(tmp_path / "simpletuner")] == [(text, "simpletuner/webui/pages/page.py") for text in found]


def test_translations_are_kept_and_texts_gone_become_obsolete(tmp_path: Path) -> None:
    catalogue = make(Save="Guardar", Delete="Borrar")
    update(catalogue, make(Rename="", Save=""))
    catalogue = reread(catalogue, tmp_path)
    assert [(message.id, message.string) for message in catalogue if message.id] == [
        ("Rename", ""),
        ("Save", "Guardar"),
    ]
    assert [*catalogue.obsolete] == ["Delete"]
    update(catalogue, make(Delete=""))
    found = catalogue["Delete"]
    assert found and found.string == "Borrar" and not found.fuzzy


def test_the_translation_of_a_changed_text_is_fuzzy(tmp_path: Path) -> None:
    catalogue = Catalog()
    catalogue.add("Optimizer steps between two checkpoints.", "Pasos entre dos puntos de control.")
    catalogue.add("Save", "Guardar")
    template = Catalog()
    for text in ("Optimizer steps between two checkpoints. 0: never.", "Saved", "Save"):
        template.add(text)
    update(catalogue, template)
    catalogue = reread(catalogue, tmp_path)
    changed, new = catalogue["Optimizer steps between two checkpoints. 0: never."], catalogue["Saved"]
    assert changed and changed.string == "Pasos entre dos puntos de control." and changed.fuzzy
    assert new and not new.string, "what is like a text that is still there is not taken for it"
    assert not catalogue.obsolete


def test_a_language_gets_nothing_of_another(tmp_path: Path) -> None:
    """A fuzzy translation of one catalogue once stood in those that were updated after it."""
    old, new = "This is not the access token", "This is not the access token."
    wanted = collect()
    for language, translation in (("es", "No es el token"), ("zh", "")):
        catalogue = make(**{old: translation}) if translation else Catalog()
        catalogue_file(language, tmp_path).write_text(written(catalogue, language), encoding="utf-8")
    assert new in texts(wanted)
    update_files(tmp_path)
    es, zh = (read_catalogue(catalogue_file(language, tmp_path)) for language in ("es", "zh"))
    assert (es[new].string, es[new].fuzzy) == ("No es el token", True)
    assert (zh[new].string, zh[new].fuzzy) == ("", False)


def test_updating_again_changes_nothing(tmp_path: Path) -> None:
    for language in translations():
        catalogue_file(language, tmp_path).write_bytes(catalogue_file(language).read_bytes())
    update_files(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    update_files(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("language", translations())
def test_catalogues_have_the_texts_of_the_sources(language: str, tmp_path: Path) -> None:
    """If this fails: ``python -m simpletuner.translation.catalogues``, then translate what is new."""
    update_files(tmp_path)
    wanted = texts(read_catalogue(catalogue_file(language, tmp_path)))
    present = texts(read_catalogue(catalogue_file(language, FOLDER)))
    assert sorted(set(wanted) - set(present)) == [], "missing"
    assert sorted(set(present) - set(wanted)) == [], "superfluous"
    assert present == wanted, "order"


def test_shortcomings_are_named(tmp_path: Path) -> None:
    catalogue = make(Save="Guardar", Delete="", Old="Viejo", Stop="Para")
    catalogue.add("Stop", flags=["fuzzy"])
    reread(catalogue, tmp_path)
    template = make(Save="", Delete="", New="", Stop="")
    lacking = ["missing: Delete", "missing: New", "fuzzy: Stop", "superfluous: Old"]
    assert shortcomings("es", template, tmp_path) == lacking


def test_check_lists_what_is_missing_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in FOLDER.glob("*.po")}
    result = main(["--check"])
    printed = capsys.readouterr().out
    lacking = {language: shortcomings(language, collect()) for language in translations()}
    assert result == int(any(lacking.values()))
    for language, lines in lacking.items():
        assert f"{language}: {len(lines)} of" in printed if lines else f"{language}: complete" in printed
    assert {path: path.read_bytes() for path in FOLDER.glob("*.po")} == before


def test_no_text_is_put_together_before_it_is_translated() -> None:
    """An f-string, or a sum of texts, is in no catalogue."""
    mistaken = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in sorted((PACKAGE / "webui").rglob("*.py"))
        for call in translating_calls(path)
        if len(call.args) != 1 or call.keywords or isinstance(call.args[0], ast.JoinedStr | ast.BinOp)
    ]
    assert mistaken == []
