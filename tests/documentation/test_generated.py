"""What is made from the code is up to date, and figures are those of RESULTS.md."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from documentation_tools import generate
from documentation_tools.generate import generated_pages, options_page, prose
from documentation_tools.pages import LANGUAGES, ROOT, parse_page
from documentation_tools.results import Results, without_values
from documentation_tools.words import WORDS

RESULTS = """\
# Results

<!-- speed on cpu -->
## Speed

It reaches that after 43% of the steps (40%, 52%), with +29.4% time.

| figure | value | target | note |
| --- | ---: | --- | --- |
| step from the cache / without | 1.027 × | ≤ 1.05 | a |
| disk | 512 KiB |  |  |
| distance | 89.49 ± 7.36 |  |  |
<!-- /speed on cpu -->
"""


def test_pages_are_up_to_date() -> None:
    stale = [path for path, text in generated_pages().items() if not path.exists() or path.read_text("utf-8") != text]
    assert not stale, f"run `python -m documentation_tools.generate`: {stale}"


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("step from the cache / without", "1.027"),
        ("step from the cache / without / target", "≤ 1.05"),
        ("disk", "512"),
        ("distance", "89.49 ± 7.36"),
        ("It reaches that after", "43%"),
        ("with", "+29.4%"),
    ],
)
def test_figures_are_filled_in(figure: str, value: str) -> None:
    page = f"Takes <!-- result: speed on cpu / {figure} -->9<!-- /result --> of it."
    filled = Results(RESULTS).fill_in(page)
    assert filled == page.replace("9<", f"{value}<")
    assert Results(RESULTS).fill_in(filled) == filled
    assert without_values(filled) == without_values(page)


@pytest.mark.parametrize("place", ["speed on gpu / disk", "speed on cpu / memory", "speed on cpu / disk / floor"])
def test_unknown_figures_are_refused(place: str) -> None:
    with pytest.raises(ValueError, match=r"RESULTS\.md has no"):
        Results(RESULTS).fill_in(f"<!-- result: {place} -->9<!-- /result -->")


def test_a_page_that_quotes_a_wrong_figure_is_named(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "documentation").mkdir()
    (tmp_path / "benchmarks" / "RESULTS.md").write_text(RESULTS, encoding="utf-8")
    page = tmp_path / "documentation" / "A.md"
    page.write_text("<!-- result: speed on cpu / disk -->9<!-- /result -->", encoding="utf-8")
    assert generated_pages(tmp_path)[page] == "<!-- result: speed on cpu / disk -->512<!-- /result -->"
    page.write_text("<!-- result: speed on cpu / none -->9<!-- /result -->", encoding="utf-8")
    with pytest.raises(ValueError, match=r"documentation/A\.md: .*'none'"):
        generated_pages(tmp_path)


def test_check_finds_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    own = generate.generated_pages
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "generated_pages", lambda: own(tmp_path))
    assert generate.main(["--check"]) == 1
    assert not (tmp_path / "documentation").exists()
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    page = tmp_path / "documentation" / "OPTIONS.ja.md"
    page.write_text(page.read_text("utf-8").replace("crepa_lambda", "crepa_lamda"), encoding="utf-8")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "out of date: documentation/OPTIONS.ja.md\n"


def test_words_are_the_same_in_every_language() -> None:
    assert len({frozenset(words) for words in WORDS.values()}) == 1
    assert {*WORDS, "en"} == set(LANGUAGES)
    for words in WORDS.values():
        for english, translated in words.items():
            fields = [piece.partition("}")[0] for piece in english.split("{")[1:]]
            assert sorted(fields) == sorted(piece.partition("}")[0] for piece in translated.split("{")[1:])
            assert english.count("`") == translated.count("`")


@pytest.mark.parametrize("language", LANGUAGES)
def test_generated_pages_are_in_step(language: str) -> None:
    english, other = (parse_page(options_page(one), Path("OPTIONS.md")) for one in ("en", language))
    for ours, theirs in zip(english.sections, other.sections, strict=True):
        assert [len(table.rows) for table in ours.tables] == [len(table.rows) for table in theirs.tables]
        assert ours.names == theirs.names


def test_help_texts_become_markdown() -> None:
    assert prose("Weight. crepa_lambda 0, timm/<name>, `simpletuner cache`, 2 * 3, output_dir/logs, to_q") == (
        "Weight. `crepa_lambda` 0, timm/&lt;name>, `simpletuner cache`, 2 \\* 3, output_dir/logs, to_q"
    )
