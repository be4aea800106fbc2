"""A declared grid of runs is checked, trained by the real commands, resumed and compared."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.evaluation.ablation import NUMBERS, TABLE, read_ablation, run_ablation, write_comparison
from simpletuner.helpers.utils.run_folder import find_checkpoints
from tests.runs import write_config

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path, tiny_folder: Callable[[str], Path], tiny_teacher: Path) -> Written:
    """`written(runs, **more)`: an ablation of a tiny SD 1.x, the teacher's features aligned with lambda 0.5."""

    def write(runs: dict[str, Any], **more: Any) -> Path:
        options = {"urepa_enabled": True, "urepa_model": str(tiny_teacher), "urepa_encoder_image_size": "auto"}
        base = write_config(tmp_path, tiny_folder("sd1x"), max_train_steps=2, aspect_bucket_alignment=64, **options)
        content = {"base": str(base), "output_dir": str(tmp_path / "all"), "runs": runs, "evaluate": False} | more
        path = tmp_path / "ablation.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_runs_are_what_the_file_declares(written: Written) -> None:
    arms = {"baseline": {"urepa_lambda": 0}, "mid": {}}
    _, runs = read_ablation(written(arms, seeds=[1, 2]))
    assert [run.name for run in runs] == ["baseline-seed-1", "baseline-seed-2", "mid-seed-1", "mid-seed-2"]
    assert [run.values["seed"] for run in runs] == [1, 2, 1, 2]
    assert [run.values.get("urepa_lambda") for run in runs] == [0, 0, None, None]
    assert all(run.folder.name == run.name and run.values["max_train_steps"] == 2 for run in runs)
    _, (alone, _) = read_ablation(written(arms))
    assert alone.name == "baseline" and "seed" not in alone.values


def test_the_configuration_of_a_run_is_no_ablation(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_family": "sd3", "seed": 1}')
    with pytest.raises(ValueError, match=r"config\.json: is the configuration of one run\. An ablation holds base"):
        read_ablation(path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"runs": {}}, "runs: Dictionary should have at least 1 item"),
        ({"steps": 3}, "steps: Extra inputs are not permitted"),
        ({"base": "nowhere.json"}, "base: error: nowhere.json: no such file"),
        ({"seeds": ["1"]}, "seeds.0: Input should be a valid integer"),
        ({"runs": {"a/b": {}}}, "'a/b' can't name a folder"),
        ({"runs": {"a": {"--output_dir": "x"}}}, "runs.a sets output_dir"),
    ],
)
def test_a_wrong_file_is_told(written: Written, more: dict[str, Any], words: str) -> None:
    path = written({"a": {}} if "runs" not in more else more.pop("runs"), **more)
    with pytest.raises(ValueError, match=words):
        read_ablation(path)


def test_nothing_is_trained_where_a_run_is_wrong(written: Written, tmp_path: Path) -> None:
    said: list[str] = []
    path = written({"fine": {}, "wrong": {"urepa_lamda": 0.5}})
    assert run_ablation(path, say=said.append) == 2
    assert any("wrong: urepa_lamda" in line and "urepa_lambda" in line for line in said)
    assert not find_checkpoints(tmp_path / "all" / "fine")
    with pytest.raises(ValueError, match="no run 'other'; there are fine, wrong"):
        run_ablation(path, only=["other"], say=said.append)


def test_runs_are_trained_once_and_compared(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accelerate.py").write_text("raise SystemExit('a file of the working directory is no module')")
    path = written({"baseline": {"urepa_lambda": 0}, "mid": {}})
    said: list[str] = []
    assert run_ablation(path, only=["baseline"], say=said.append) == 0, said
    folder = tmp_path / "all"
    ((_, checkpoint),) = find_checkpoints(folder / "baseline")
    before = checkpoint.stat().st_mtime_ns
    assert run_ablation(path, say=said.append) == 0, said
    assert checkpoint.stat().st_mtime_ns == before and find_checkpoints(folder / "mid")

    rows = json.loads((folder / NUMBERS).read_text())
    assert [(row["run"], row["step"], row["finished"]) for row in rows] == [("baseline", 2, True), ("mid", 2, True)]
    assert [row["options"] for row in rows] == [{"urepa_lambda": 0}, {"urepa_lambda": 0.5}]  # the default, spelt out
    assert "urepa_similarity" in rows[1]["measures"] and "urepa_similarity" not in rows[0]["measures"]
    assert "| mid | 2 | 0.5 |" in (folder / TABLE).read_text()

    begun = written({"baseline": {"urepa_lambda": 0}, "mid": {"learning_rate": 1e-3}})
    with pytest.raises(ValueError, match=r"learning_rate is None in the run that was begun there and 0.001 now"):
        run_ablation(begun, say=said.append)


def test_a_stop_lets_the_training_save_first(written: Written, tmp_path: Path) -> None:
    """The signal goes to the ablation alone, as from a scheduler; what the training then wrote is resumed from."""
    path = written({"long": {"max_train_steps": 200}, "never": {}})
    command = [sys.executable, "-m", "simpletuner.cli", "ablate", "--config", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # of the training, once it is in its steps
        if line.startswith("step 10/200"):
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130 and "goes on from here" in output
    assert find_checkpoints(tmp_path / "all" / "long") and not find_checkpoints(tmp_path / "all" / "never")


def test_a_run_that_breaks_does_not_stop_the_others(written: Written, tmp_path: Path) -> None:
    """Its folder can't be written: a file lies where the caches would go."""
    (tmp_path / "blocked").write_text("")
    path = written({"broken": {"cache_dir": str(tmp_path / "blocked" / "caches")}, "mid": {}})
    said: list[str] = []
    assert run_ablation(path, say=said.append) in (1, 2)
    assert any("broken" in line for line in said)


def test_the_last_evaluation_counts(written: Written, tmp_path: Path) -> None:
    _, runs = read_ablation(written({"mid": {}}))
    folder = tmp_path / "all" / "mid"
    for step, distance in ((100, 5.0), (20, 9.0)):
        target = folder / "evaluation" / f"step-{step:06}"
        target.mkdir(parents=True)
        found = {"step": step, "samples": 8, "features": "inception", "settings": {}, "metrics": {"fid": distance}}
        (target / "metrics.json").write_text(json.dumps(found))
    (folder / "metrics.jsonl").write_text('{"step": 1, "base_loss": 2.0}\n{"step": 2, "base_loss": 1.0}\n')
    (row,) = write_comparison(tmp_path / "all", runs)
    assert row["measures"] == {"base_loss": 1.5, "fid": 5.0} and not row["finished"]
    assert "| mid (unfinished) | 2 | 1.5 | 5 |" in (tmp_path / "all" / TABLE).read_text()
