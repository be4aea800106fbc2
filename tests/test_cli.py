from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner.cli import COMMANDS, MOST_SEED, main
from simpletuner.configuration.general import MAX_SEED

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


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("[!m]*.json")))
def test_examples_are_valid(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from the root of the repository, once the folders that the data sets name are there."""
    shutil.copytree(EXAMPLES, tmp_path / "config" / "examples")
    for listing in EXAMPLES.glob("multidatabackend-*.json"):
        for entry in json.loads(listing.read_text()):
            (tmp_path / entry["instance_data_dir"]).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", f"config/examples/{name}"]) == 0, capsys.readouterr().err


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
