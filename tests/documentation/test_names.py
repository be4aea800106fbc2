"""Every option, family, flag and function that a page names in backticks exists."""

from __future__ import annotations

import pytest

from documentation_tools.names import unknown_names
from documentation_tools.pages import LANGUAGES, ROOT, Page, read_page, translation_of
from simpletuner.configuration import Config, describe_all
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.helpers.models.registry import FAMILIES
from tests.documentation.conftest import EVERY_PAGE, WritePage


@EVERY_PAGE
def test_names_exist(page: Page) -> None:
    assert unknown_names(page) == []


@pytest.mark.parametrize(
    "word",
    [
        "crepa_lamda",
        "crepa_lamda: 0.5",
        '"crepa_lamda": 0.5',
        "--crepa_lamda 0.5",
        "--dry-runs",
        "sd4",
        "urepa_block_index",
        "prepare_batches_of",
    ],
)
def test_unknown_names_are_found(word: str, write_page: WritePage) -> None:
    problems = unknown_names(write_page(f"# A\n\nSet `{word}`.\n"))
    assert len(problems) == 1 and word in problems[0], problems


def test_known_names_pass(write_page: WritePage) -> None:
    words = ["crepa_lambda: 0.5", "--crepa_lambda 0.3", "--dry-run", "sd3", "crepa_model", "urepa_similarity", "bf16"]
    words += ["model.crepa_projector", "instance_data_dir", "--num_processes 2", "a photo of a tench", "true"]
    assert unknown_names(write_page("# A\n\n" + " ".join(f"`{word}`" for word in words) + "\n")) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_option_and_family_has_its_row(language: str) -> None:
    files = {name: translation_of(ROOT / "documentation" / name, language) for name in ("OPTIONS.md", "FAMILIES.md")}
    pages = {name: read_page(file) for name, file in files.items()}
    options = [info.name for info in describe_all(Config)]
    keys = [f"data-{info.name}" for model in (DatasetEntry, VideoOptions) for info in describe_all(model)]
    assert {*options, *keys} <= pages["OPTIONS.md"].anchors
    assert set(FAMILIES) <= pages["FAMILIES.md"].anchors
