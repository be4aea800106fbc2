"""Runs are stopped in order, killed if need be, and forgotten; a real one goes through all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simpletuner.webui.keeper import LOG_FILE, process_file, process_mark
from simpletuner.webui.records import read_stop, stop_file
from simpletuner.webui.runs import (
    PATIENCE,
    Run,
    RunConflict,
    can_resume,
    forget_run,
    is_active,
    list_runs,
    read_run,
    resume_run,
    start_run,
    stop_run,
)
from simpletuner.webui.site import Site
from simpletuner.webui.watch import log_tail, metrics, progress
from tests.disk import disk_with_room_for
from tests.webui.small_runs import (
    DEAF,
    ID,
    PATIENT,
    keep,
    make_record,
    put_exit,
    until,
    write_rows,
)


def test_a_run_starts_runs_and_is_stopped(site: Site, output: Path) -> None:
    folder = make_record(site, "-c", PATIENT)
    keeper = keep(folder)
    run = read_run(site, ID)
    assert run.state == "starting" and run.pid is not None and os.getpgid(run.pid) == keeper.pid
    write_rows(output, [1, 2])
    assert read_run(site, ID).state == "running"
    until(lambda: "ready" in (folder / LOG_FILE).read_text())
    stop_run(site, ID)
    keeper.wait(timeout=60)
    assert read_run(site, ID).state == "failed"  # this one leaves with code 7
    with pytest.raises(RunConflict, match="ended already"):
        stop_run(site, ID)


def test_killing_has_to_wait(site: Site) -> None:
    folder = make_record(site, "-c", DEAF)
    keeper = keep(folder)
    until(lambda: "ready" in (folder / LOG_FILE).read_text())
    assert stop_run(site, ID, at_once=True).state == "stopping"  # asked first, as it wasn't yet
    with pytest.raises(RunConflict, match="15 seconds"):
        stop_run(site, ID, at_once=True)
    os.utime(stop_file(folder, 1), (0, time.time() - PATIENCE))
    stop_run(site, ID, at_once=True)
    keeper.wait(timeout=60)
    assert until(lambda: None if is_active(found := read_run(site, ID)) else found).state == "killed"


def test_forgetting_leaves_the_output(site: Site, output: Path) -> None:
    folder = make_record(site)
    write_rows(output, [1])
    with pytest.raises(RunConflict, match="active"):
        forget_run(site, ID)
    put_exit(folder, 0)
    forget_run(site, ID)
    assert list_runs(site) == [] and not list(site.runs.glob("*")) and (output / "metrics.jsonl").is_file()


def test_a_full_disk_keeps_no_run_from_stopping(site: Site) -> None:
    """Nor from being killed, which needs to know when it was asked."""
    folder = make_record(site, "-c", DEAF)
    keeper = keep(folder)
    until(lambda: "ready" in (folder / LOG_FILE).read_text())
    with disk_with_room_for(0):
        assert stop_run(site, ID).state == "stopping"
        os.utime(stop_file(folder, 1), (0, time.time() - PATIENCE))
        stop_run(site, ID, at_once=True)
    keeper.wait(timeout=60)
    assert until(lambda: None if is_active(found := read_run(site, ID)) else found).state == "killed"


def test_a_training_through_thick_and_thin(site: Site, project: Callable[..., str], output: Path) -> None:
    """Started by a server that is then killed, stopped, resumed, killed, and resumed, to end without its keeper."""
    project(max_train_steps=10**6, checkpoint_step_interval=10)
    code = (
        "import os, signal, sys; from pathlib import Path; from simpletuner.webui.runs import start_run; "
        "from simpletuner.webui.site import make_site; "
        "start_run(make_site(Path(sys.argv[1]), [Path(sys.argv[2])]), 'small'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    server = [sys.executable, "-c", code, str(site.configs), str(site.roots[0])]
    assert subprocess.run(server, check=False).returncode == -signal.SIGKILL
    (run,) = list_runs(site)

    def now() -> Run:
        return read_run(site, run.id)

    def steps() -> list[int]:
        return [row["step"] for row in metrics(now())]

    assert now().state == "starting"
    until(lambda: now().state == "running" and len(steps()) > 3)
    with pytest.raises(RunConflict, match=run.id):
        start_run(site, "small", "cache")
    assert stop_run(site, run.id).state in ("stopping", "stopped")
    until(lambda: not is_active(now()))
    assert now().state == "stopped" and now().exit_code == 0 and can_resume(now())
    assert "Stopped after step" in log_tail(now(), 3)
    saved = progress(now()).step
    assert progress(now()).total == 10**6 and progress(now()).seconds_left is None
    assert steps() == list(range(1, saved + 1))

    resumed = resume_run(site, run.id)
    assert (resumed.id, resumed.starts, resumed.state) == (run.id, 2, "starting")
    until(lambda: steps()[-1] > saved + 12)
    pid = now().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_active(now()))
    assert now().state == "killed" and now().exit_code == -signal.SIGKILL and can_resume(now())
    lines = log_tail(now()).splitlines()
    assert any(line.startswith("--- start 2, ") for line in lines) and "✓ run" in lines[-1]

    project(max_train_steps=progress(now()).step + 100)
    last_sent = steps()[-1]
    resume_run(site, run.id)
    until(lambda: now().state == "running")
    keeper = json.loads(process_file(run.folder, 3).read_text())["keeper"]["pid"]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: process_mark(keeper) is None)
    assert now().state == "running" and now().pid is not None
    until(lambda: not is_active(now()))
    assert now().state == "killed" and now().exit_code is None  # nobody saw that it was well
    assert steps() == list(range(1, last_sent + 101))
    assert read_stop(run.folder, 1) is not None and read_stop(run.folder, 3) is None
