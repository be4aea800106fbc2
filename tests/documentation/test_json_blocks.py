"""Every JSON block passes `simpletuner check` without an error and without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation_tools.json_blocks import json_problems, prepare
from documentation_tools.pages import Page
from tests.documentation.conftest import EVERY_PAGE, WritePage


@pytest.fixture(autouse=True)
def _beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)


@EVERY_PAGE
def test_blocks_are_valid(page: Page) -> None:
    assert json_problems(page) == []


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ('{"crepa_lamda": 0.5}', "crepa_lamda: is no option"),
        ('{"crepa_lambda": -1}', "crepa_lambda"),
        ('{"urepa_enabled": true}', "urepa_enabled"),
        ('{"crepa_power": 2}', "has no effect"),
        ('{"lora_rank": 8,}', "no JSON"),
        ('{"model_family": "sd4"}', "no known family"),
        ('[{"id": "a", "instance_data_dir": "a", "crop_asspect": "square"}]', "crop_asspect"),
        ('{"id": "a", "instance_data_dir": "a", "instance_prompt": "a cat"}', "instance_prompt"),
        ('{"base": "none.json", "output_dir": "output", "runs": {"a": {}}}', "none.json"),
    ],
)
def test_what_is_wrong_is_found(block: str, words: str, write_page: WritePage) -> None:
    problems = json_problems(write_page(f"# A\n\n```json\n{block}\n```\n"))
    assert any("line 3" in problem and words in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("context", "block"),
    [
        ("", '{"crepa_lambda": 0.3}'),
        ("<!-- context: sd1x -->", '{"urepa_lambda": 0.3, "urepa_manifold_weight": 0}'),
        ("<!-- context: wan -->", '{"crepa_adjacent_distance": 2, "crepa_cumulative_neighbors": true}'),
        ("<!-- context: dit -->", '{"crepa_block_index": 8}'),
        ("", '[{"id": "a", "instance_data_dir": "b", "caption_strategy": "filename"}]'),
        ("", '{"--crepa_enabled": false, "--max_train_steps": 5}'),
    ],
)
def test_fragments_are_laid_over_their_family(context: str, block: str, write_page: WritePage) -> None:
    assert json_problems(write_page(f"# A\n\n{context}\n\n```json\n{block}\n```\n")) == []
