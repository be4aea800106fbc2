"""The miniature recipe makes valid configurations of the real ones, and its report says what was measured."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from simpletuner.cli import main
from simpletuner.configuration import check_config_file, has_errors
from simpletuner.evaluation.ablation import read_ablation, write_configs
from simpletuner.helpers.models.registry import FAMILIES
from tests.helpers.data.files import picture

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the script defines; it imports its neighbour, as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "recipe_mini.py"))


@pytest.fixture
def output(recipe: Mapping[str, Any], tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A folder as the recipe has it before its first training, with two classes."""
    train = tmp_path / "ILSVRC" / recipe["TRAIN"]
    for synset in ("n00000001", "n00000002"):
        (train / synset).mkdir(parents=True)
        picture(96, 64).save(train / synset / "one.JPEG")
    names = tmp_path / recipe["CLASS_NAMES_FILE"]
    names.write_text('{"n00000001": "cat", "n00000002": "dog"}')
    root = ["--root", str(tmp_path / "ILSVRC")]
    assert main(["imagenet", "sample", *root, "--per-class", "1", "--output", str(tmp_path / "train.csv")]) == 0
    for name in ("random", "model"):
        shutil.copytree(tiny_folder("sd1x"), tmp_path / name)
    return tmp_path


def test_its_configurations_are_those_of_the_recipe_and_valid(recipe: Mapping[str, Any], output: Path) -> None:
    recipe["write_configs"](output, 80)
    for name in ("base.json", recipe["TIER_A"]):
        config, problems = check_config_file(output / name, [], FAMILIES)
        assert config is not None and not problems, problems
        assert config.max_train_steps == (300 if name == "base.json" else 13)
    real = json.loads((recipe["EXAMPLES"] / recipe["TIER_A"]).read_text())
    small = json.loads((output / recipe["TIER_A"]).read_text())
    for option in ("trainable_prefixes", "peft_lora_target_modules", "lora_rank", "prediction_type", "urepa_lambda"):
        assert small[option] == real[option]
    for name in (recipe["GRID"], "seeds.json"):
        _, runs = read_ablation(output / name)
        assert not has_errors(write_configs(runs))
    assert [run.name for run in runs] == [f"{arm}-seed-{seed}" for arm in ("baseline", "mid") for seed in range(3)]
    assert {run.values["max_train_steps"] for run in runs} == {80}


def test_the_summary_counts_the_seeds(recipe: Mapping[str, Any], tmp_path: Path) -> None:
    values = {"cknna": [(0.1, 0.2), (0.1, 0.2), (0.2, 0.2)], "cca": [(0.3, 0.4), (0.3, 0.2), (0.3, 0.2)]}
    for number, (seed, arms) in enumerate(recipe["seeds"](tmp_path).items()):
        blocks = {
            folder.name: {
                "blocks": {name: {"mid_block": rows[number][place], "other": 9.0} for name, rows in values.items()}
            }
            for place, folder in enumerate(arms.values())
        }
        target = tmp_path / f"report-seed-{seed}"
        target.mkdir()
        (target / "report.json").write_text(json.dumps({"block": "mid_block", "runs": blocks}))
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "ablation.md").write_text("# Ablation\n\n| run |\n")
    text = recipe["summary"](tmp_path)
    assert "| 1 | 0.1000 | 0.2000 | 0.3000 | 0.2000 |" in text
    assert "Higher with alignment: CKNNA for 2, CCA for 1 of 3 seeds." in text
    assert text.index(recipe["NOTICE"]) < text.index("| seed |") and text.endswith("| run |\n")
