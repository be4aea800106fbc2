"""What a machine can see of the quality of the catalogues."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from simpletuner.configuration import Config, describe_all
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.translation import FOLDER, catalogue_file, read_translations
from simpletuner.translation.catalogues import collect, shortcomings, translations

# Names and code that read the same in every language, and words that one language has taken over.
SAME = {"LoRA", "CREPA", "U-REPA", "iREPA", "LayerSync", "EMA", "CPU", "JSON"}
SAME_IN = {
    "es": {"Prompt", "Clips", "1 error"},
    "zh": {"LoRA alpha", "Min-SNR gamma"},
    "hi": set[str](),
    "ja": {"LoRA alpha", "Min-SNR gamma"},
}

# Choices that a help text uses as plain words.
PLAIN_WORDS = {
    ("caption_strategy", "folder"),
    ("type", "local"),
    ("urepa_align_layers", "mid"),
    ("urepa_manifold_scope", "sample"),
}

PLACEHOLDER = re.compile(r"\{[^{}\s]*\}")
CJK = r"[぀-ヿ㐀-鿿]"
LANGUAGES = pytest.mark.parametrize("language", translations())


@cache
def pairs(language: str) -> list[tuple[str, str]]:
    return [*read_translations(catalogue_file(language)).items()]


def code_words(text: str) -> set[str]:
    """What must not be translated: code, names of options and files, number formats, numbers, names of methods."""
    text = PLACEHOLDER.sub(" ", text)
    found = set(re.findall(r"`([^`]+)`", text)) | set(re.findall(r'"(\w+)"', text))
    found |= {word.rstrip(".") for word in re.findall(r"[\w.<>-]*[A-Za-z>][_./][\w<>][\w.<>/-]*|\.[a-z]\w+", text)}
    found |= set(re.findall(r"\b[A-Za-z]+\d\w*", text))
    found |= {word.removesuffix("s") for word in re.findall(r"\b\w*[A-Z]\w*[A-Z]\w*", text)}
    found |= {number.rstrip(".") for number in re.findall(r"(?<![\w.])\d[\d.]*(?:e-\d+)?", text)}
    return (found | ({"None"} & set(re.findall(r"\w+", text)))) - {"OK"}


def named_choices() -> list[tuple[str, str]]:
    """Choices of options that the option's help names, each with that help."""
    return [
        (choice, info.help)
        for model in (Config, DatasetEntry, VideoOptions)
        for info in describe_all(model)
        for choice in info.choices or []
        if re.search(rf"(?<![\w-]){choice}(?![\w-])", info.help) and (info.name, choice) not in PLAIN_WORDS
    ]


def test_code_words_are_told_from_words() -> None:
    text = 'Reads up_blocks.0. of config.json, or timm/<name> (REPA; not "auto"), 1e-4 of 3.0. None: `a b`, GPUs, bf16.'
    names = {"up_blocks.0", "config.json", "timm/<name>", "REPA", "auto", "None", "a b", "GPU", "bf16"}
    assert code_words(text) == {*names, "1e-4", "3.0"}
    assert code_words("A .txt file of 1344x768, output_dir/logs.") == {".txt", "output_dir/logs", "1344"}
    assert code_words("{done} of {total} steps. Every sentence (this one) is plain / simple; it's so.") == set()
    assert ("full", "lora trains small adapters beside a frozen model; full trains all its weights.") in named_choices()


@LANGUAGES
def test_everything_is_translated(language: str) -> None:
    assert shortcomings(language, collect()) == []


@LANGUAGES
def test_placeholders_agree(language: str) -> None:
    for text, translation in pairs(language):
        assert set(PLACEHOLDER.findall(text)) == set(PLACEHOLDER.findall(translation)), text


@LANGUAGES
def test_nothing_stays_english(language: str) -> None:
    assert {text for text, translation in pairs(language) if text == translation} <= SAME | SAME_IN[language]


@LANGUAGES
def test_spaces_and_ends_agree(language: str) -> None:
    stop = {"es": ".", "zh": "。", "hi": "।", "ja": "。"}[language]
    for text, translation in pairs(language):
        assert translation == translation.strip() or text != text.strip(), text
        assert "  " not in translation and "\n" not in translation, text
        assert text.endswith(".") == translation.endswith(stop), text
        assert text.endswith("?") == translation.endswith(("?", "？")), text


@LANGUAGES
def test_code_words_are_unchanged(language: str) -> None:
    for text, translation in pairs(language):
        missing = {word for word in code_words(text) if word not in translation}
        assert missing == set(), f"{text}\n{translation}"


@LANGUAGES
def test_choices_are_unchanged(language: str) -> None:
    texts = dict(pairs(language))
    for choice, text in named_choices():
        if text in texts:
            assert re.search(rf"(?<![A-Za-z]){choice}(?![A-Za-z])", texts[text]), f"{choice}: {texts[text]}"


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_punctuation_is_full_width(language: str) -> None:
    """Half-width signs are for code, which stands in the English text just so."""
    for text, translation in pairs(language):
        for run in re.findall(r"[!-~]+(?: [!-~]+)*", PLACEHOLDER.sub("", translation)):
            assert run in text or not re.search(r"[,;:!?()]|\.$", run), f"{run}: {translation}"


def test_chinese_has_spaces_around_latin_words() -> None:
    for _text, translation in pairs("zh"):
        assert not re.search(rf"{CJK}[A-Za-z0-9{{`]|[A-Za-z0-9}}`]{CJK}", translation), translation


def test_spanish_opens_what_it_closes() -> None:
    for _text, translation in pairs("es"):
        assert translation.count("¿") == translation.count("?") and translation.count("¡") == translation.count("!")


@pytest.mark.parametrize(("language", "script"), [("hi", r"[ऀ-ॿ]"), ("zh", r"[㐀-鿿]"), ("ja", CJK)])
def test_the_script_is_the_languages_own(language: str, script: str) -> None:
    own, latin = 0, 0
    for text, translation in pairs(language):
        words = PLACEHOLDER.sub("", translation)
        if text != translation and re.search(r"[^\W\d_]", words):
            assert re.search(script, words), translation
            own += len(re.findall(script, words))
            latin += len(re.findall("[A-Za-z]", words))
    assert own > 2 * latin


@LANGUAGES
def test_glossaries_are_tables_of_terms(language: str) -> None:
    rows = [line.split("|") for line in glossary(language).read_text(encoding="utf-8").splitlines() if "|" in line]
    assert {len(row) for row in rows} == {5}, "| English | term | note |"
    terms = [row[1].strip() for row in rows[2:]]
    assert len(terms) >= 40 and len(set(terms)) == len(terms) and all(row[2].strip() for row in rows)


def glossary(language: str) -> Path:
    return FOLDER / f"glossary.{language}.md"
