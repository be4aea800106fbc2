"""Translations are in step with their English pages: the same structure, made from the sections as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation_tools.pages import TRANSLATIONS, Page, parse_page
from documentation_tools.translations import (
    differences,
    missing_pages,
    outdated,
    section_hash,
    stamped,
    status,
    strays,
    translated_pages,
)

ENGLISH = """\
# Caches

What is cached, with `cache_dir`. See [options](OPTIONS.md#cache_dir).

## Formats

<!-- context: sd3 -->

```json
{"vae_cache_dtype": "fp16"}
```

| Format | Size |
|---|---:|
| `bf16` | <!-- result: a / b -->1<!-- /result --> |

![The page](images/webui-runs.en.png)
"""
SPANISH = (
    ENGLISH.replace("Caches", "Cachés")
    .replace("What is cached, with", "Qué se guarda, con")
    .replace("See [options]", "Véanse las [opciones]")
    .replace("Formats", "Formatos")
    .replace("| Format | Size |", "| Formato | Tamaño |")
    .replace("The page", "La página")
    .replace(".en.png", ".es.png")
)


def pairs() -> list[tuple[Page, Page]]:
    """Every English page and each translation that it has."""
    return [pair for language in TRANSLATIONS for pair in translated_pages(language)]


def test_structure_is_the_same() -> None:
    assert [problem for pair in pairs() for problem in differences(*pair)] == []


def test_translations_are_up_to_date() -> None:
    assert [problem for pair in pairs() for problem in outdated(*pair)] == []


def test_no_page_is_missing() -> None:
    assert [page for language in TRANSLATIONS for page in missing_pages(language)] == []


def test_no_translation_lacks_its_page() -> None:
    assert strays() == []


def english() -> Page:
    return parse_page(ENGLISH, Path("CACHING.md"))


def spanish(text: str = SPANISH) -> Page:
    return parse_page(text, Path("CACHING.es.md"))


def test_a_faithful_translation_passes() -> None:
    assert differences(english(), spanish()) == []
    marked = spanish(stamped(spanish(), english()))
    assert [section.mark for section in marked.sections] == [section_hash(section) for section in english().sections]
    assert outdated(english(), marked) == differences(english(), marked) == []
    assert stamped(marked, english()) == marked.source


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("## Formatos", "### Formatos", "headings differ"),
        ("## Formatos\n", "", "headings differ (2 in English, 1 here), first at 'Formats'"),
        ("fp16", "bf16", "blocks of code"),
        ("context: sd3", "context: wan", "blocks of code"),
        ("| `bf16` |", "| `fp16` | 2 |\n| `bf16` |", "table sizes"),
        ("`cache_dir`", "`cache_dirs`", "options differ"),
        ("#cache_dir", "#otra", "links differ"),
        ("webui-runs.es", "webui-run.es", "pictures differ"),
        ("webui-runs.es", "webui-runs.en", "pictures differ"),
    ],
)
def test_another_structure_is_found(before: str, after: str, words: str) -> None:
    assert before in SPANISH
    problems = differences(english(), spanish(SPANISH.replace(before, after, 1)))
    assert len(problems) == 1 and words in problems[0], problems


def test_a_changed_section_names_its_translation() -> None:
    marked = spanish(stamped(spanish(), english()))
    changed = parse_page(ENGLISH.replace("What is cached", "All that is cached"), Path("CACHING.md"))
    problems = outdated(changed, marked)
    assert len(problems) == 1 and "CACHING.es.md, line 1" in problems[0] and "'Caches'" in problems[0]
    filled = parse_page(ENGLISH.replace("-->1<", "-->2<"), Path("CACHING.md"))
    assert outdated(filled, marked) == []


def test_a_translation_without_hashes_is_out_of_date() -> None:
    assert len(outdated(english(), spanish())) == 2


def test_a_page_out_of_step_is_not_stamped() -> None:
    with pytest.raises(ValueError, match="blocks of code"):
        stamped(spanish(SPANISH.replace("fp16", "bf16", 1)), english())


def test_status_lists_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "documentation").mkdir()
    (tmp_path / "README.md").write_text("# A\n", encoding="utf-8")
    (tmp_path / "documentation" / "CACHING.md").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "documentation" / "CACHING.es.md").write_text(SPANISH, encoding="utf-8")
    (tmp_path / "documentation" / "GONE.es.md").write_text("# B\n", encoding="utf-8")
    lines = list(status(tmp_path))
    assert lines[:2] == ["es: 1 of 2 pages, 2 places out of date", "  missing: README.es.md"]
    assert "  missing: documentation/CACHING.zh.md" in lines
    assert [file.name for file in strays(tmp_path)] == ["GONE.es.md"]


def test_a_picture_without_a_translation_stays(tmp_path: Path) -> None:
    text = "# Page\n\n![A run](images/{name}.{language}.png)\n"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "phone.en.png").touch()
    source = parse_page(text.format(name="phone", language="en"), tmp_path / "PAGE.md")
    for language, found in (("en", 0), ("es", 1)):
        translated = parse_page(text.format(name="phone", language=language), tmp_path / "PAGE.es.md")
        assert len(differences(source, translated)) == found
    (tmp_path / "images" / "phone.es.png").touch()
    assert differences(source, parse_page(text.format(name="phone", language="es"), tmp_path / "PAGE.es.md")) == []
