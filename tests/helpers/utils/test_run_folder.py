from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner.helpers.utils.run_folder import (
    FACTS_FILE,
    MANIFEST,
    METRICS_FILE,
    RunFacts,
    checkpoint_folder,
    find_checkpoints,
    find_samples,
    read_facts,
    read_metrics,
    read_state,
    sample_path,
    write_facts,
)


def test_facts_are_read_as_written(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None
    write_facts(tmp_path, RunFacts(total_steps=300, first_step=20))
    assert read_facts(tmp_path) == RunFacts(300, 20)
    assert [path.name for path in tmp_path.iterdir()] == [FACTS_FILE]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"total_steps": 1}', '{"total_steps": 1, "first": 2}'])
def test_broken_facts_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FACTS_FILE).write_text(content)
    assert read_facts(tmp_path) is None


def test_a_torn_last_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    assert read_metrics(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_samples_come_in_the_order_of_step_and_number(tmp_path: Path) -> None:
    """Beyond six digits too; what is still being written, and what is no sample, is passed over."""
    places = [(5, 1, ".png"), (5, 0, ".png"), (1_000_000, 0, ".mp4"), (400, 0, ".mp4")]
    for step, number, suffix in places:
        path = sample_path(tmp_path, step, number, suffix)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in (".step-000007-0.png", "step-8-0.gif", "step-x-0.png"):
        (tmp_path / "validation" / name).touch()
    assert [(sample.step, sample.number) for sample in find_samples(tmp_path)] == [(5, 0), (5, 1), (400, 0), (10**6, 0)]


def test_a_checkpoint_is_intact_only_with_every_file_at_its_size(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path, 12)
    folder.mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert find_checkpoints(tmp_path) == [(12, folder)]
    with pytest.raises(ValueError, match=r"no intact checkpoint: its manifest\.json can't be read"):
        read_state(folder)
    (folder / MANIFEST).write_text(json.dumps({"state": {"step": 12}, "files": {"weights": 3}}))
    (folder / "weights").write_bytes(b"ab")
    with pytest.raises(ValueError, match="weights is missing or torn"):
        read_state(folder)
    (folder / "weights").write_bytes(b"abc")
    assert read_state(folder) == {"step": 12}
