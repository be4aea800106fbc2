"""`simpletuner report` on tiny trained runs: its numbers, words, figures and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from simpletuner.cli import main
from simpletuner.evaluation.embeddings import has_umap
from simpletuner.evaluation.examination import ReportSettings, common_ground, examine
from simpletuner.evaluation.report import compare_evaluations
from simpletuner.evaluation.report_text import markdown
from simpletuner.evaluation.similarity import MEASURES
from simpletuner.evaluation.trained_runs import loaded_run
from tests.evaluation.pairs import config_of, train_pair, write_pair
from tests.runs import write_config

TinyFolder = Callable[[str], Path]
pytestmark = pytest.mark.usefixtures("own_precision")
BLOCKS = ["down_0", "down_1", "down_2", "down_3", "mid", "up_0", "up_1", "up_2", "up_3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_folder: TinyFolder, tiny_teacher: Path) -> Path:
    """Trained runs `plain` and `aligned`, with their configurations beside them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("report")
    options = {"urepa_enabled": True, "urepa_model": str(tiny_teacher), "urepa_encoder_image_size": 56}
    train_pair(folder, tiny_folder("sd1x"), **options)
    return folder


def report(root: Path, output: str, *flags: str, baseline: str = "plain", aligned: str = "aligned") -> int:
    configs = ["--baseline", str(root / f"{baseline}.json"), "--config", str(root / f"{aligned}.json")]
    return main(["report", *configs, "--output", str(root / output), "--sample-steps", "2", *flags])


def evaluation(**metrics: float) -> dict[str, Any]:
    return {"step": 3, "samples": 20, "features": "inception", "settings": {}, "metrics": metrics}


def write_evaluation(root: Path, name: str, **metrics: float) -> None:
    folder = root / name / "evaluation" / "step-000003"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(evaluation(**metrics)))


@pytest.fixture(scope="module")
def written(root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a report and its numbers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    write_evaluation(root, "plain", fid=90.0, recall=0.5)
    write_evaluation(root, "aligned", fid=80.0, recall=0.4)
    assert report(root, "first", "--notice", "This is a miniature.") == 0
    return root / "first", json.loads((root / "first" / "report.json").read_text())


def test_numbers_of_every_block_and_noise_level(written: tuple[Path, dict[str, Any]]) -> None:
    _, numbers = written
    assert list(numbers["runs"]) == ["before training", "plain", "aligned"] and numbers["block"] == "mid"
    for run in numbers["runs"].values():
        assert {measure: list(found) for measure, found in run["blocks"].items()} == dict.fromkeys(MEASURES, BLOCKS)
        for measure in MEASURES:
            assert len(run["levels"][measure]) == 9
            assert run["levels"][measure]["0.3"] == pytest.approx(run["blocks"][measure]["mid"], abs=1e-6)
            assert all(-1 <= value <= 1 for value in run["blocks"][measure].values())
    steps = {name: run["step"] for name, run in numbers["runs"].items()}
    assert steps == {"before training": 0, "plain": 3, "aligned": 3}
    projected = {name: len(run["projected_cosine"]) for name, run in numbers["runs"].items()}
    assert projected == {"before training": 0, "plain": 0, "aligned": 9}
    assert numbers["runs"]["aligned"]["options"]["urepa_enabled"] is True
    assert "output_dir" not in numbers["runs"]["aligned"]["options"]


def test_the_text_begins_with_the_verdict_and_claims_no_more(written: tuple[Path, dict[str, Any]]) -> None:
    folder, numbers = written
    lines = (folder / "report.md").read_text().splitlines()
    assert lines[2] == "> **This is a miniature.**"
    assert lines[4] == f"**aligned:** {numbers['verdicts']['aligned']}"
    assert lines[4].startswith("**aligned:** Alignment ") or lines[4].startswith("**aligned:** No effect")
    assert "plain → aligned, after mid: CKNNA" in lines[4]
    assert lines[4].endswith(
        "Samples are better by fid and worse by recall, in one evaluation whose noise isn't known: "
        "fid 90 → 80 (-10); recall 0.5 → 0.4 (-0.1)."
    )
    text = "\n".join(lines)
    assert "One training of each run is one seed" in text and "20 images, spread evenly over those trained on" in text
    assert "| `urepa_enabled` | false | true |" in text
    assert "| plain | 20 | inception | 90 | 0.500 |" in text


def test_every_figure_is_there_and_in_the_text(written: tuple[Path, dict[str, Any]]) -> None:
    folder, numbers = written
    expected = ["training.png", "blocks.png", "levels.png", "tsne.png", *(["umap.png"] if has_umap() else [])]
    assert numbers["figures"] == [*expected, "samples.png"]
    text = (folder / "report.md").read_text()
    for figure in numbers["figures"]:
        assert (folder / figure).stat().st_size > 10_000 and f"]({figure})" in text
    assert numbers["settings"]["prompts"] == ["cat", "dog"]


def test_a_run_looked_at_again_is_the_same_to_rounding(root: Path, written: tuple[Path, dict[str, Any]]) -> None:
    folder, numbers = written
    settings = ReportSettings(folder, samples=0)
    with loaded_run(config_of(root / "aligned.json"), "3") as trainer:
        found = examine(trainer, common_ground(trainer, settings), settings)
    assert found.images is None
    for measure in ("cka", "cca", "svcca"):
        assert found.blocks[measure] == pytest.approx(numbers["runs"]["aligned"]["blocks"][measure], abs=1e-4)
    projected = {f"{level:g}": value for level, value in found.projected.items()}
    assert projected == pytest.approx(numbers["runs"]["aligned"]["projected_cosine"], abs=1e-4)


def test_a_report_needs_no_notice_and_no_evaluation(written: tuple[Path, dict[str, Any]]) -> None:
    _, numbers = written
    runs = {name: run | {"evaluation": None} for name, run in numbers["runs"].items()}
    text = markdown(numbers | {"notice": None, "runs": runs})
    assert "> **" not in text and "No evaluation of these checkpoints was found" in text


# What is refused


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_an_untrained_run_is_told(tmp_path: Path, tiny_folder: TinyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path, tiny_folder("sd1x"))
    assert report(tmp_path, "out") == 2
    assert "plain' holds no checkpoint. Train this configuration first." in refusal(capsys)
    assert not (tmp_path / "out").exists()


def test_a_step_without_a_checkpoint_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(root, "out", "--checkpoint", "2") == 2
    assert "checkpoint: '2' is no checkpoint in" in refusal(capsys)


def test_runs_that_do_not_compare_are_told(
    root: Path, tiny_folder: TinyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = root / "multidatabackend.json"
    write_config(root, tiny_folder("sd1x"), name="other", data=data, resolution=192, aspect_bucket_alignment=64)
    assert report(root, "out", aligned="other") == 2
    assert "resolution is 128 in plain and 192 in other. Only runs that share" in refusal(capsys)
    assert report(root, "out", aligned="plain") == 2
    assert "output_dir: two runs are called 'plain' by their folders" in refusal(capsys)
    assert report(root, "out", baseline="aligned", aligned="plain") == 2
    assert "An aligned run has no encoder to compare with" in refusal(capsys)


@pytest.mark.parametrize("scale", ["-1", "nan", "much"])
def test_a_wrong_guidance_is_told(tmp_path: Path, scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        report(tmp_path, "out", f"--guidance={scale}")
    assert stopped.value.code == 2
    assert f"--guidance: '{scale}' is not a number from 0 to 1000" in refusal(capsys)


def test_a_wrong_configuration_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(root, "out", aligned="nowhere") == 2
    assert "nowhere.json: no such file" in refusal(capsys)


# Evaluations


def test_evaluations_are_compared_where_they_are_alike() -> None:
    one, other = evaluation(fid=9.0, recall=0.1, count=3.0), evaluation(fid=8.0, recall=0.2, count=4.0)
    differences, note = compare_evaluations(one, other)
    assert [(d.measure, d.outcome, d.error) for d in differences] == [
        ("fid", "better", None),
        ("recall", "better", None),
    ]
    assert note is None
    assert compare_evaluations(None, other) == ([], None)
    assert compare_evaluations(one, other | {"samples": 50}) == ([], "differ in samples (20 and 50)")
