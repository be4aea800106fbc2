"""What a run shows of itself."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpletuner.helpers.utils.run_folder import sample_path
from simpletuner.webui.keeper import LOG_FILE, exit_file
from simpletuner.webui.records import read_record, write_record
from simpletuner.webui.runs import RunNotFound, read_run
from simpletuner.webui.secrets import MASK
from simpletuner.webui.site import Site
from simpletuner.webui.watch import (
    Progress,
    checkpoints,
    describe,
    log_tail,
    metrics,
    plain_log,
    progress,
    samples,
)
from tests.webui.small_runs import ID, make_record, write_checkpoint, write_rows


def test_progress(site: Site, output: Path) -> None:
    folder = make_record(site, config={"--max_train_steps": 7})
    assert progress(read_run(site, ID)) == Progress(0, 7, None, None)
    write_rows(output, range(4, 9), total=10, first=3)
    assert progress(read_run(site, ID)) == Progress(8, 10, 0.5, 1.0)
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "step_seconds": 90.0}\n{"step": 9, "eval_fid": 1.5}\n{"step": 10, "st')
    assert progress(read_run(site, ID)) == Progress(9, 10, 0.5, 0.5)  # the median isn't moved by one slow step
    exit_file(folder, 1).write_text('{"code": 1, "ended": 9.0}')
    assert progress(read_run(site, ID)) == Progress(9, 10, 0.5, None)


def test_a_length_in_epochs_is_known_when_training_begins(site: Site) -> None:
    make_record(site, config={"max_train_steps": 0, "num_train_epochs": 3})
    assert progress(read_run(site, ID)).total is None
    make_record(site, run_id=ID.replace("2030", "2031"), kind="cache", config={"max_train_steps": 7})
    assert progress(read_run(site, ID.replace("2030", "2031"))).total is None


def test_metrics_after_a_step(site: Site, output: Path) -> None:
    make_record(site)
    run = read_run(site, ID)
    assert metrics(run) == []
    write_rows(output, range(1, 6))
    assert [row["step"] for row in metrics(run, after=3)] == [4, 5]
    assert metrics(run, after=9) == [] and len(metrics(run, after=-1)) == 5
    write_rows(output, range(1, 4))  # replaced by a shorter one
    assert [row["step"] for row in metrics(run)] == [1, 2, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(1, 40), st.sets(st.integers(1, 60), max_size=4))
def test_thinned_rows(site: Site, tmp_path: Path, count: int, most: int, evaluated: set[int]) -> None:
    """At most so many, in order, the first and the last among them, the others evenly spread; evaluations stay."""
    name = uuid4().hex[:8]
    run_id, output = f"{ID[:-8]}{name}", tmp_path / name
    make_record(site, run_id=run_id, resumed=True, output_dir=output)
    lines = []
    for step in range(1, count + 1):
        lines += [{"step": step}, *([{"step": step, "eval_fid": 1.0}] if step in evaluated else [])]
    (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = metrics(read_run(site, run_id), most=most)
    evaluations = [row for row in lines if "eval_fid" in row]
    assert len(rows) <= most and rows == [row for row in lines if row in rows]
    if len(lines) <= most:
        assert rows == lines
    else:
        assert rows[-1] == lines[-1] and (rows[0] == lines[0] or most - len(evaluations) < 2)
    if len(evaluations) <= most // 2:
        assert [row for row in rows if "eval_fid" in row] == evaluations
    if not evaluations and len(lines) > most:
        gaps = [later["step"] - row["step"] for row, later in pairwise(rows)]
        assert len(rows) == most and (not gaps or max(gaps) - min(gaps) <= 1)


def test_samples_are_those_of_this_run(site: Site, output: Path) -> None:
    def draw(step: int, written: float) -> Path:
        path = sample_path(output, step, 0, ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"png")
        os.utime(path, (written, written))
        return path

    for step, written in ((20, 50.0), (10, 150.0), (30, 250.0)):
        draw(step, written)
    folder = make_record(site, started=100.0)
    assert [sample.step for sample in samples(read_run(site, ID))] == [10, 30]
    record = read_record(folder)
    write_record(folder, replace(record, archived=200.0))
    assert [sample.step for sample in samples(read_run(site, ID))] == [10]
    write_record(folder, replace(record, starts=[replace(record.starts[0], resumed=True)]))
    assert [sample.step for sample in samples(read_run(site, ID))] == [10, 20, 30]


def test_checkpoints(site: Site, output: Path) -> None:
    folder = make_record(site)
    lora = {"pytorch_lora_weights.safetensors": b"12345", "weights.safetensors": b"1", "optimizer.bin": b"12"}
    size = (write_checkpoint(output, 5, lora) / "manifest.json").stat().st_size + 8
    write_checkpoint(output, 10, lora | {"scheduler/scheduler_config.json": b"{}"})
    write_checkpoint(output, 15, {"weights.safetensors": b"1", "optimizer.bin": b"1"})
    write_checkpoint(output, 20, {"pytorch_model_fsdp_0/b": b"1", "pytorch_model_fsdp_0/a": b"1", "optimizer_0/c": b""})
    (write_checkpoint(output, 25) / "pytorch_lora_weights.safetensors").write_bytes(b"")
    found = checkpoints(read_run(site, ID))
    assert [(one.step, one.intact) for one in found] == [(5, True), (10, True), (15, True), (20, True), (25, False)]
    assert [one.files for one in found[:4]] == [
        ("pytorch_lora_weights.safetensors",),
        ("pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json"),
        ("weights.safetensors",),
        ("pytorch_model_fsdp_0/a", "pytorch_model_fsdp_0/b"),
    ]
    assert found[0].bytes == size and found[0].folder == output / "checkpoint-5"
    write_record(folder, replace(read_record(folder), archived=1.0))
    assert checkpoints(read_run(site, ID)) == []


def test_the_log_is_plain_and_holds_no_secret(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    folder = make_record(site)
    log = b"\x1b[1;31merror\x1b[0m: key 0123456789abcdef\n 10%|#   |\r 20%|##  |\r\r\n\x1b]0;title\x07two\a\xff\nthree"
    (folder / LOG_FILE).write_bytes(log)
    run = read_run(site, ID)
    assert log_tail(run) == f"error: key {MASK}\n 20%|##  |\ntwo\ufffd\nthree"
    assert log_tail(run, 2) == "two\ufffd\nthree" and log_tail(run, 0) == ""
    (folder / LOG_FILE).write_bytes(b"x" * 2**19 + b"\n" + b"line\n" * 300)
    assert log_tail(run, 1000) == "line\n" * 300
    assert plain_log(b"") == ""


def test_a_forgotten_run_shows_nothing(site: Site) -> None:
    folder = make_record(site)
    run = read_run(site, ID)
    for path in folder.iterdir():
        path.unlink()
    assert log_tail(run) == ""
    for show in (progress, metrics, samples, checkpoints, describe):
        with pytest.raises(RunNotFound, match="is gone"):
            show(run)
