"""What a run's page reads at one moment, on recorded runs."""

from __future__ import annotations

import os

import pytest

from simpletuner.helpers.utils.run_folder import sample_path
from simpletuner.webui.pages.snapshot import collect, last_value
from simpletuner.webui.records import config_file, read_record, write_record
from simpletuner.webui.runs import RunError, read_run
from simpletuner.webui.site import Site
from tests.webui.pages.recorded import append_row, draw_sample, record_run, row, save_checkpoint, write_rows


def test_all_that_a_finished_run_shows(site: Site) -> None:
    run = record_run(site, rows=[row(step) for step in range(1, 11)], log="first\nlast\n")
    draw_sample(run, 5)
    draw_sample(run, 10, suffix=".mp4")
    save_checkpoint(run, 5, torn=True)
    save_checkpoint(run, 10)
    found = collect(site, run.id)
    assert (found.run.state, found.active, found.resumable, found.stopping) == ("finished", False, True, None)
    assert (found.progress.step, found.progress.total) == (10, 10)
    assert found.rows is not None
    assert [values["step"] for values in found.rows] == list(range(1, 11))
    assert [(shown.step, shown.name, shown.is_video) for shown in found.pictures] == [
        (5, "step-000005-0.png", False),
        (10, "step-000010-0.mp4", True),
    ]
    assert found.pictures[0].address(run.id).startswith(f"/api/v1/runs/{run.id}/samples/step-000005-0.png?v=")
    assert [(checkpoint.step, checkpoint.intact) for checkpoint in found.checkpoints] == [(5, False), (10, True)]
    assert found.log.splitlines() == ["first", "last"]
    assert found.machine["memory"]["total"] > 0


def test_rows_come_only_where_there_are_new_ones(site: Site) -> None:
    run = record_run(site, rows=[row(1), row(2)])
    first = collect(site, run.id)
    again = collect(site, run.id, first.seen)
    assert first.rows is not None
    assert again.rows is None
    append_row(run, row(3))
    more = collect(site, run.id, again.seen)
    assert more.rows is not None
    assert [values["step"] for values in more.rows] == [1, 2, 3]


def test_evaluations_are_kept_however_long_the_run_is(site: Site) -> None:
    """Rows are thinned out for the charts, evaluations never."""
    rows = [row(step) for step in range(1, 2_001)]
    for step in range(2_000, 0, -5):
        rows.insert(step, {"step": step, "eval_fid": float(step)})
    run = record_run(site, rows=rows)
    first = collect(site, run.id)
    assert first.rows is not None
    assert len(first.rows) <= 400
    assert (first.rows[0]["step"], first.rows[-1]["step"]) == (1, 2_000)
    assert not any("eval_fid" in values for values in first.rows)
    assert [values["eval_fid"] for values in first.evaluations] == list(range(5, 2_001, 5))
    append_row(run, {"step": 2_000, "eval_fid": 7.0})  # the evaluation follows its step's own row
    append_row(run, row(2_001))
    second = collect(site, run.id, first.seen)
    assert [values["eval_fid"] for values in second.evaluations][-2:] == [1_995.0, 7.0]


def test_a_resume_takes_rows_and_evaluations_back(site: Site) -> None:
    rows = [row(1), row(2), {"step": 2, "eval_fid": 2.0}, row(3), row(4), {"step": 4, "eval_fid": 4.0}]
    run = record_run(site, rows=rows, code=1)
    before = collect(site, run.id)
    record = read_record(run.folder)
    write_record(run.folder, type(record)(**{**vars(record), "starts": [*record.starts, *record.starts]}))
    config_file(run.folder, 2).write_text("{}")
    write_rows(run.output_dir, rows[:3])
    after = collect(site, run.id, before.seen)
    assert read_run(site, run.id).starts == 2
    assert after.rows is not None
    assert [values["step"] for values in after.rows] == [1, 2]
    assert [values["eval_fid"] for values in after.evaluations] == [2.0]


def test_a_sample_that_is_drawn_again_has_another_address(site: Site) -> None:
    """Else the browser would show what it kept."""
    run = record_run(site, rows=[row(1)])
    draw_sample(run, 1)
    (first,) = collect(site, run.id).pictures
    path = sample_path(run.output_dir, 1, 0, ".png")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 1))
    (second,) = collect(site, run.id).pictures
    assert first.address(run.id) != second.address(run.id)


def test_a_run_that_nobody_recorded_is_an_error(site: Site) -> None:
    with pytest.raises(RunError, match="There is no run"):
        collect(site, "20260101-000009-00000009")


def test_the_last_value_is_that_of_the_last_row_that_has_one() -> None:
    assert last_value([row(1), row(2), {"step": 2, "eval_fid": 3.0}], "base_loss") == 0.5
    assert last_value([], "base_loss") is None
