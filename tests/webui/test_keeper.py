"""The process that starts the trainer and keeps its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from simpletuner.webui.keeper import LOG_FILE, exit_file, process_file, process_mark
from simpletuner.webui.site import Site
from tests.webui.small_runs import PATIENT, keep, make_record, until


def test_output_and_exit_code_are_kept(site: Site) -> None:
    folder = make_record(site, "-c", "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)")
    (folder / LOG_FILE).write_text("before\n")
    keep(folder).wait(timeout=60)
    assert json.loads(exit_file(folder, 1).read_text())["code"] == 3
    assert sorted((folder / LOG_FILE).read_text().splitlines()) == ["before", "one", "two"]


def test_the_signal_that_ended_the_trainer_is_its_code(site: Site) -> None:
    folder = make_record(site, "-c", "import os; os.abort()")
    keep(folder).wait(timeout=60)
    assert json.loads(exit_file(folder, 1).read_text())["code"] == -signal.SIGABRT


def test_sigterm_is_passed_on_and_other_signals_are_not_heeded(site: Site) -> None:
    folder = make_record(site, "-c", PATIENT)
    keeper = keep(folder)
    until(lambda: "ready" in (folder / LOG_FILE).read_text())
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        keeper.send_signal(number)
    assert keeper.wait(timeout=60) == 0
    assert json.loads(exit_file(folder, 1).read_text())["code"] == 7


def test_the_trainer_lives_in_the_keepers_own_session(site: Site) -> None:
    folder = make_record(site, "-c", PATIENT)
    keeper = keep(folder)
    told = json.loads(process_file(folder, 1).read_text())
    assert told["keeper"] == {"pid": keeper.pid, "mark": process_mark(keeper.pid)}
    child = told["child"]["pid"]
    assert told["child"]["mark"] == process_mark(child)
    assert os.getsid(child) == os.getpgid(child) == keeper.pid != os.getsid(0)
    os.killpg(keeper.pid, signal.SIGKILL)
    keeper.wait(timeout=60)


def test_a_command_that_is_not_there_is_told(site: Site) -> None:
    folder = make_record(site)
    content = (folder / "record.json").read_text().replace(sys.executable, "/no/such/python")
    (folder / "record.json").write_text(content)
    keep(folder).wait(timeout=60)
    assert json.loads(exit_file(folder, 1).read_text())["code"] == 127
    assert "/no/such/python can't be started" in (folder / LOG_FILE).read_text()


def test_the_exit_code_has_its_room_from_the_start(site: Site) -> None:
    """A disk that is full at the end, which may be why the trainer ended, doesn't swallow it."""
    folder = make_record(site, "-c", PATIENT)
    keeper = keep(folder)
    taken = exit_file(folder, 1).with_name("exit-1.json.partial")
    assert not taken.read_bytes().strip() and taken.stat().st_blocks > 0
    inode = taken.stat().st_ino
    until(lambda: "ready" in (folder / LOG_FILE).read_text())
    os.killpg(keeper.pid, signal.SIGTERM)
    keeper.wait(timeout=60)
    assert exit_file(folder, 1).stat().st_ino == inode


def test_only_the_standard_library_is_imported() -> None:
    """It waits for days beside the trainer."""
    code = (
        "import sys; before = set(sys.modules); import simpletuner.webui.keeper\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'simpletuner'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_mark_tells_a_process_from_all_others() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert process_mark(os.getpid()) == process_mark(os.getpid()) is not None
        assert process_mark(other.pid) not in (None, process_mark(os.getpid()))
        other.kill()
        until(lambda: process_mark(other.pid) is None)  # a zombie, as nobody has waited for it
    assert process_mark(2**22 + 1) is None  # above the highest pid
