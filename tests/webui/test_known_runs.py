"""Runs are told from their records and the table of processes."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from simpletuner.webui.keeper import process_file, process_mark
from simpletuner.webui.records import read_record, stop_file, write_record
from simpletuner.webui.runs import (
    RunError,
    RunNotFound,
    can_resume,
    forget_run,
    is_active,
    list_runs,
    read_run,
    resume_run,
    stop_run,
)
from simpletuner.webui.site import Site
from simpletuner.webui.watch import metrics, progress
from tests.webui.small_runs import (
    ID,
    PATIENT,
    keep,
    make_record,
    put_exit,
    until,
    write_checkpoint,
    write_rows,
)


@pytest.mark.parametrize(
    ("code", "asked", "last", "state"),
    [
        (0, False, 10, "finished"),
        (0, True, 10, "finished"),
        (0, True, 6, "stopped"),
        (0, False, 6, "stopped"),  # somebody else sent SIGTERM
        (0, True, None, "stopped"),
        (0, False, None, "finished"),
        (-signal.SIGTERM, True, None, "stopped"),
        (-signal.SIGTERM, False, None, "killed"),
        (-signal.SIGKILL, True, 6, "killed"),
        (1, False, 6, "failed"),
        (2, True, None, "failed"),
    ],
)
def test_the_state_of_a_run_that_ended(
    site: Site, output: Path, code: int, asked: bool, last: int | None, state: str
) -> None:
    folder = make_record(site)
    if last is not None:
        write_rows(output, range(1, last + 1))
    if asked:
        stop_file(folder, 1).touch()
    put_exit(folder, code)
    run = read_run(site, ID)
    assert (run.state, run.exit_code, run.pid) == (state, code, None)
    assert run.ended is not None and not is_active(run)


def test_what_an_earlier_run_left_is_not_believed(site: Site, output: Path) -> None:
    output.mkdir()
    write_rows(output, range(1, 7))
    folder = make_record(site)
    put_exit(folder, 0)
    assert read_run(site, ID).state == "finished"  # not stopped at step 6
    assert metrics(read_run(site, ID)) == [] and progress(read_run(site, ID)).step == 0


def test_the_pid_of_another_process_is_not_believed(site: Site) -> None:
    """This process lives and has the pid, but was created at another time."""
    folder = make_record(site)
    reused = {"pid": os.getpid(), "mark": "2000-01-01 1"}
    process_file(folder, 1).write_text(json.dumps({"keeper": reused, "child": reused}))
    assert read_run(site, ID).state == "killed"
    told = {"pid": os.getpid(), "mark": process_mark(os.getpid())}
    process_file(folder, 1).write_text(json.dumps({"keeper": reused, "child": told}))
    assert read_run(site, ID).state == "starting"


def test_a_run_outlives_its_keeper_and_is_killed_when_nobody_saw_its_end(site: Site, output: Path) -> None:
    folder = make_record(site, "-c", PATIENT)
    keeper = keep(folder)
    write_rows(output, [1, 2])
    keeper.kill()
    keeper.wait(timeout=60)
    run = read_run(site, ID)
    assert run.state == "running" and run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    run = until(lambda: None if is_active(found := read_run(site, ID)) else found)
    assert (run.state, run.exit_code) == ("killed", None) and run.ended is not None and run.ended >= run.started


def test_a_start_of_which_nothing_is_heard_is_over_in_a_minute(site: Site) -> None:
    folder = make_record(site)
    assert read_run(site, ID).state == "starting"
    record = read_record(folder)
    write_record(folder, replace(record, starts=[replace(record.starts[0], started=time.time() - 61)]))
    assert read_run(site, ID).state == "killed"


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "/etc", "20300102-030405-0000000", ID + "\n", ID + "/..", "x" * 999]
)
def test_what_is_no_id_is_no_run(site: Site, name: str) -> None:
    make_record(site)
    for ask in (read_run, stop_run, resume_run, forget_run):
        with pytest.raises(RunNotFound):
            ask(site, name)


def test_runs_that_cannot_be_read_are_left_out(site: Site, tmp_path: Path) -> None:
    assert list_runs(site) == []
    make_record(site, started=5.0)
    newer = ID.replace("2030", "2031")
    make_record(site, run_id=newer, started=6.0)
    broken, outside = ID.replace("2030", "2032"), ID.replace("2030", "2033")
    (make_record(site, run_id=broken) / "record.json").write_text('{"id": 3}')
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    make_record(site, run_id=outside, output_dir=elsewhere)
    assert [run.id for run in list_runs(site)] == [newer, ID]
    with pytest.raises(RunError, match="lies outside"):
        read_run(site, outside)


def test_can_resume(site: Site, output: Path) -> None:
    folder = make_record(site)
    torn = write_checkpoint(output, 9)
    (torn / "pytorch_lora_weights.safetensors").unlink()
    assert not can_resume(read_run(site, ID))
    put_exit(folder, 1)
    assert not can_resume(read_run(site, ID))
    write_checkpoint(output, 5)
    assert can_resume(read_run(site, ID))
    record = read_record(folder)
    write_record(folder, replace(record, archived=time.time()))
    assert not can_resume(read_run(site, ID))
    write_record(folder, replace(record, command="cache"))
    assert not can_resume(read_run(site, ID))
