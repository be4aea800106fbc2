"""Runs are started once, on what is checked, and resumed as what they are."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.webui.keeper import LOG_FILE
from simpletuner.webui.runs import (
    RunConflict,
    RunError,
    can_resume,
    forget_run,
    is_active,
    list_runs,
    read_run,
    resume_run,
    run_config,
    start_run,
)
from simpletuner.webui.site import Site
from simpletuner.webui.watch import metrics, progress
from tests.webui.small_runs import (
    ID,
    make_record,
    put_exit,
    stopped,
    until,
    write_checkpoint,
    write_rows,
)


def test_each_problem_has_its_line(site: Site, project: Callable[..., str]) -> None:
    project(train_batch_size=0, model_family="sd4")
    with pytest.raises(RunError) as refused:
        start_run(site, "small")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert any("train_batch_size" in line for line in lines) and any("'sd4'" in line for line in lines)
    (site.configs / "small.json").write_text("{")
    with pytest.raises(RunError, match=r"small\.json"):
        start_run(site, "small")
    with pytest.raises(RunError, match="none"):
        start_run(site, "none")
    assert [path.name for path in site.runs.iterdir()] == []


@pytest.mark.parametrize("option", ["output_dir", "cache_dir"])
def test_folders_outside_of_the_roots_are_refused(
    site: Site, project: Callable[..., str], tmp_path: Path, option: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path.parent)
    for folder in (tmp_path.parent / "x", tmp_path / ".." / "x", tmp_path / "link" / "x"):
        project(**{option: str(folder)})
        with pytest.raises(RunError, match=f"error: {option}: .* lies outside"):
            start_run(site, "small")


def test_latents_outside_of_the_roots_are_refused(site: Site, project: Callable[..., str], tmp_path: Path) -> None:
    """A data set can name a folder for them, into which the trainer writes."""
    project()
    listed = tmp_path / "multidatabackend.json"
    (entry,) = json.loads(listed.read_text())
    for folder in ("../x", str(tmp_path.parent / "x")):
        listed.write_text(json.dumps([entry | {"cache_dir_vae": folder}]))
        with pytest.raises(RunError, match=r"cache_dir_vae: .* lies outside"):
            start_run(site, "small")
    listed.write_bytes(listed.read_bytes() + b" " * 2**21)  # no way around it
    with pytest.raises(RunError, match="larger than 2 MiB"):
        start_run(site, "small")


def test_checkpoints_of_an_earlier_run_are_not_mixed_with(
    site: Site, project: Callable[..., str], output: Path
) -> None:
    project()
    with pytest.raises(RunError, match="no checkpoint to resume from"):
        start_run(site, "small", resume=True)
    write_checkpoint(output, 3)
    with pytest.raises(RunError, match=r"up to step 3\. Resume it, or set another output_dir"):
        start_run(site, "small")


def test_two_simultaneous_starts_are_one_run(site: Site, project: Callable[..., str]) -> None:
    """By two servers, each with two clicks."""
    project()
    outcomes: list[str] = []
    code = (
        "import sys; from pathlib import Path; from simpletuner.webui.runs import *; "
        "from simpletuner.webui.site import make_site; site = make_site(Path(sys.argv[1]), [Path(sys.argv[2])]); "
        "print('waiting', flush=True); input()\ntry: print(start_run(site, 'small').id)\n"
        "except RunConflict: print('conflict')"
    )
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(site.configs), str(site.roots[0])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert all(server.stdout is not None and server.stdout.readline() == "waiting\n" for server in servers)

    def click() -> None:
        try:
            outcomes.append(start_run(site, "small").id)
        except RunConflict:
            outcomes.append("conflict")

    clicks = [threading.Thread(target=click) for _ in range(2)]
    for thread in clicks:
        thread.start()
    outcomes += [server.communicate("\n", timeout=60)[0].strip() for server in servers]
    for thread in clicks:
        thread.join()
    assert sorted(outcomes)[1:] == ["conflict"] * 3
    (run,) = list_runs(site)
    assert run.id == sorted(outcomes)[0]
    assert stopped(site, run).state == "stopped"


def test_a_new_run_in_the_folder_of_an_older_one_leaves_it_its_curves(
    site: Site, project: Callable[..., str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPLETUNER_TOKEN", "the-servers-own")
    project(max_train_steps=9)
    older = make_record(site, started=time.time() - 9)
    write_rows(output, range(1, 7))
    put_exit(older, 1)
    run = start_run(site, "small")
    assert b"the-servers-own" not in Path(f"/proc/{run.pid}/environ").read_bytes()
    assert run.id != ID and run.state == "starting" and run.starts == 1
    assert metrics(run) == [] and progress(run).total == 9
    (output / "metrics.jsonl").write_text("")  # as the trainer does
    before = read_run(site, ID)
    assert before.state == "failed" and len(metrics(before)) == 6 and progress(before).total == 10
    with pytest.raises(RunError, match="Another run was begun"):
        resume_run(site, ID)
    assert stopped(site, run).state == "stopped" and not can_resume(before)


def test_a_run_is_resumed_as_its_project_says_now_if_that_is_still_its_own(
    site: Site, project: Callable[..., str], output: Path, tmp_path: Path
) -> None:
    def resumed(**options: Any) -> dict[str, Any]:
        project(**options)
        run = stopped(site, resume_run(site, ID))
        assert run.id == ID
        return run_config(run)

    project(max_train_steps=9, seed=1)
    folder = make_record(site, config=json.loads((site.configs / "small.json").read_text()))
    put_exit(folder, 0)
    write_checkpoint(output, 5)
    assert resumed(max_train_steps=12)["max_train_steps"] == 12
    assert resumed(max_train_steps=20, output_dir=str(tmp_path / "elsewhere"))["max_train_steps"] == 12
    (site.configs / "small.json").unlink()
    assert run_config(stopped(site, resume_run(site, ID)))["max_train_steps"] == 12
    assert read_run(site, ID).starts == 4


def test_a_configuration_may_say_itself_that_it_goes_on(site: Site, project: Callable[..., str], output: Path) -> None:
    project(resume_from_checkpoint="latest")
    first = stopped(site, start_run(site, "small"))  # nothing is there yet
    write_checkpoint(output, 5)
    again = start_run(site, "small")
    assert (again.id, again.starts) == (first.id, 2)
    assert b"--resume_from_checkpoint" not in Path(f"/proc/{again.pid}/cmdline").read_bytes()
    stopped(site, again)
    forget_run(site, first.id)
    fresh = start_run(site, "small")  # of what nobody here has a record
    assert fresh.id != first.id and fresh.starts == 1
    stopped(site, fresh)


def test_files_of_the_working_directory_are_no_modules(
    site: Site, project: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the command `simpletuner`: neither the keeper nor the trainer takes them for what they import."""
    monkeypatch.chdir(tmp_path)
    for name in ("subprocess", "random", "simpletuner"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('this is no {name}')")
    project(max_train_steps=10**6)
    run = start_run(site, "small")
    until(lambda: (run.folder / LOG_FILE).read_text() or not is_active(read_run(site, run.id)))
    assert is_active(read_run(site, run.id)), (run.folder / LOG_FILE).read_text()
    stopped(site, run)


def test_edits_while_it_starts_change_nothing(site: Site, project: Callable[..., str]) -> None:
    project(max_train_steps=9)
    run = start_run(site, "small")
    project(max_train_steps=12)
    assert run_config(run)["max_train_steps"] == 9
    command = Path(f"/proc/{run.pid}/cmdline").read_bytes().split(b"\0")
    assert str(run.folder / "config-1.json").encode() in command
    stopped(site, run)
