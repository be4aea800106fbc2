from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState

from simpletuner.cli import COMMANDS, MOST_SEED, main
from simpletuner.configuration import has_errors
from simpletuner.configuration.general import MAX_SEED
from simpletuner.evaluation.ablation import read_ablation, write_configs
from tests.helpers.data.caches import contents
from tests.runs import metrics, run, write_config

EXAMPLES = Path(__file__).parents[1] / "config" / "examples"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    data = tmp_path / "multidatabackend.json"
    data.write_text(json.dumps([{"id": "mine", "instance_data_dir": str(tmp_path / "images")}]))
    config = {
        "model_family": "sd3",
        "pretrained_model_name_or_path": "org/model",
        "data_backend_config": str(data),
        "max_train_steps": 100,
        "checkpoint_step_interval": 50,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, simpletuner.cli; sys.exit(any(m in sys.modules for m in ('torch', 'pydantic', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["trian"], ["options", "--crepa_lambda", "0.3"]])
def test_wrong_command_lines(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--steps x", "argument --steps: 'x' is not a whole number from 3 to 1000000"),
        ("--steps 2", "argument --steps: '2' is not a whole number"),
        ("--seed -1", "argument --seed: '-1' is not a whole number from 0 to 4294901760"),
        ("--seed 4294967295", "argument --seed: '4294967295' is not a whole number"),
    ],
)
def test_wrong_numbers_for_the_demo(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *flags.split()])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_seeds_of_the_demo_are_those_of_a_run() -> None:
    assert MOST_SEED == MAX_SEED


def example_names(*, ablations: bool) -> list[str]:
    """The examples that are configurations, or those that declare several runs of one."""
    paths = EXAMPLES.glob("[!m]*.json")
    return sorted(path.name for path in paths if path.stem.endswith("-ablation") is ablations)


@pytest.fixture
def beside_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As at the root of the repository, once the folders and files that the data sets name are there."""
    shutil.copytree(EXAMPLES, tmp_path / "config" / "examples")
    for listing in EXAMPLES.glob("multidatabackend-*.json"):
        for entry in json.loads(listing.read_text()):
            folder = tmp_path / entry["instance_data_dir"]
            folder.mkdir(parents=True, exist_ok=True)
            for key in entry.keys() & {"metadata_file", "class_names"}:
                (folder / entry[key]).touch()
    monkeypatch.chdir(tmp_path)
    return Path("config/examples")


@pytest.mark.parametrize("name", example_names(ablations=False))
def test_examples_are_valid(name: str, beside_examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(beside_examples / name)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", example_names(ablations=True))
def test_runs_of_example_ablations_are_valid(name: str, beside_examples: Path) -> None:
    _, runs = read_ablation(beside_examples / name)
    problems = write_configs(runs)
    assert runs and not has_errors(problems), problems


def test_options_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--json"]) == 0
    options = {option["name"]: option for option in json.loads(capsys.readouterr().out)}
    crepa = options["crepa_lambda"]
    assert (crepa["type"], crepa["default"], crepa["minimum"], crepa["maximum"]) == ("number", 0.5, 0, None)
    assert (crepa["tab"], crepa["section"], crepa["depends_on"]) == ("Training", "Loss functions", "crepa_enabled")
    assert options["model_type"]["choices"] == ["lora", "full"]


def test_options_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    assert "Training / Loss functions / U-REPA" in printed and "urepa_manifold_weight" in printed


def test_check_accepts_flags(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--crepa_lambda", "0.3", "--crepa_enabled", "--crepa_encoder_frames_batch_size", "-1"]
    assert main(["check", *flags[:2], "--config", str(config_file), *flags[2:]]) == 0
    printed = capsys.readouterr()
    assert printed.out == "The configuration is valid.\n" and printed.err == ""


def test_warnings_do_not_fail(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config_file), "--push_to_hub"]) == 0
    assert "warning: push_to_hub" in capsys.readouterr().err


def test_all_problems_of_a_configuration_are_listed(config_file: Path) -> None:
    flags = ["--urepa_enabled", "--crepa_lamda=1", "--learning_rate=fast", "--ema_decay=0.9"]
    command = [sys.executable, "-m", "simpletuner.cli", "check", "--config", str(config_file), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    named = {line.split(": ")[1]: line.split(": ")[0] for line in lines}
    assert named == {"urepa_enabled": "error", "crepa_lamda": "error", "learning_rate": "error", "ema_decay": "warning"}
    assert lines[-1].startswith("warning")
    assert "Traceback" not in done.stderr


def test_families_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--json"]) == 0
    families = {family.pop("family"): family for family in json.loads(capsys.readouterr().out)}
    assert families["sd3"] == {
        "type": "image transformer",
        "class": "SD3Transformer2DModel",
        "blocks": 24,
        "hidden_size": 1536,
        "default_tap": 8,
        "alignment": "REPA",
        "resolution": 1024,
        "token_grid": [64, 64],
    }
    assert families["sdxl"]["alignment"] == "U-REPA" and families["sdxl"]["default_tap"] == "mid"
    assert families["wan"]["alignment"] == "CREPA"
    assert len(families) == 20


def test_families_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    assert "kandinsky5_video" in printed and "64×64 at 1024²" in printed


# Caching


class Cached(NamedTuple):
    config: Path
    caches: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path], tiny_teacher: Path) -> Cached:
    """A configuration with REPA, what `simpletuner cache` made of it, and what it said."""
    root = tmp_path_factory.mktemp("cached")
    options = {"crepa_enabled": True, "crepa_encoder": str(tiny_teacher), "crepa_encoder_image_size": 56}
    config = write_config(root, tiny_folder("sd3"), **options)
    return Cached(config, root / "caches", run("-m", "simpletuner.cli", "cache", "--config", str(config)))


@pytest.fixture
def own_process(own_precision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands that run here: nothing of theirs stays."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def made(lines: str) -> dict[str, int]:
    """What a run says is cached: the number of records of each kind."""
    found = re.findall(r"^Cached (\d+) (\w+) in .*, [\d.,]+ MiB\.$", lines, re.MULTILINE)
    return {kind: int(count) for count, kind in found}


EVERYTHING = {"latents": 7, "prompts": 8, "features": 7}  # of 7 images with captions, and the empty prompt


def test_cache_makes_all_that_training_reads_and_says_so(cached: Cached) -> None:
    assert cached.done.returncode == 0, cached.done.stderr
    assert made(cached.done.stderr) == EVERYTHING
    assert "7 samples need teacher features: " in cached.done.stderr
    assert cached.done.stdout == "" and "warning" not in cached.done.stderr
    assert len(contents(cached.caches)) == 3
    assert not (cached.config.parent / "run").exists()  # nothing was trained


@pytest.mark.usefixtures("own_process")
def test_cache_makes_nothing_twice(cached: Cached, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(cached.caches)
    assert main(["cache", "--config", str(cached.config)]) == 0
    said = capsys.readouterr().err
    assert made(said) == EVERYTHING and "need teacher features" not in said
    assert contents(cached.caches) == before


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("command", ["cache", "train"])
def test_another_teachers_cache_is_refused(
    command: str, cached: Cached, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(cached.caches)
    flags = ["--crepa_encoder_image_size", "84", "--output_dir", str(tmp_path / "run")]
    assert main([command, "--config", str(cached.config), *flags]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "size is 84 here and 56 there (see crepa_encoder_image_size)" in error
    assert "simpletuner cache --rebuild" in error
    assert contents(cached.caches) == before


@pytest.mark.usefixtures("own_process")
def test_rebuild_replaces_the_features(cached: Cached, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caches = Path(shutil.copytree(cached.caches, tmp_path / "caches"))
    before = contents(caches)
    flags = ["--cache_dir", str(caches), "--crepa_encoder_image_size", "84"]
    assert main(["cache", "--config", str(cached.config), *flags, "--rebuild"]) == 0
    assert made(capsys.readouterr().err) == EVERYTHING
    changed = [path.relative_to(caches) for path, content in contents(caches).items() if before[path] != content]
    assert {path.parts[0] for path in changed} == {"features"}
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["cache", "--config", str(cached.config), *flags]) == 0


@pytest.mark.usefixtures("own_process")
def test_training_reads_the_cache_and_never_loads_the_teacher(
    cached: Cached, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher has the weights that the cache was made with, but can't be loaded with what its config says now."""
    encoder = Path(shutil.copytree(tiny_teacher, tmp_path / "encoder"))
    facts = json.loads((encoder / "config.json").read_text())
    facts["model_args"]["depth"] += 1
    (encoder / "config.json").write_text(json.dumps(facts))
    before = contents(cached.caches)
    flags = ["--crepa_encoder", str(encoder), "--max_train_steps", "2", "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--config", str(cached.config), *flags]) == 0, capsys.readouterr().err
    rows = metrics(tmp_path)
    assert len(rows) == 2 and all(-1 <= row["crepa_similarity"] <= 1 for row in rows)
    assert contents(cached.caches) == before

    AcceleratorState._reset_state(reset_partial_state=True)
    flags[-1] = str(tmp_path / "other")
    assert main(["train", "--config", str(cached.config), *flags, "--crepa_feature_cache", "false"]) == 2
    assert str(encoder) in capsys.readouterr().err


def test_only_cache_can_rebuild(cached: Cached, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(cached.config), "--rebuild"]) == 2
    assert "rebuild" in capsys.readouterr().err
