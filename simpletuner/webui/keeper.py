"""The small process that starts a trainer and keeps its exit code: it outlives the server that started it.

    python -m simpletuner.webui.keeper RECORD

`RECORD/record.json` names the command of the newest start; what it prints is appended to `RECORD/log.txt`. Only the
standard library is imported, so that it starts in some 30 ms, and holds little while it waits for days.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

RECORD_FILE, LOG_FILE = "record.json", "log.txt"
# More than what is written of a process or an exit, and a whole block of most file systems.
_ROOM = 4096


def process_file(folder: Path, start: int) -> Path:
    """What the keeper writes once the trainer runs: pid and mark of both."""
    return folder / f"process-{start}.json"


def exit_file(folder: Path, start: int) -> Path:
    """What the keeper writes at the end: the exit code (negative: a signal's number) and the time."""
    return folder / f"exit-{start}.json"


def process_mark(pid: int) -> str | None:
    """What tells the process with this pid from all that had it before: when it was created, and in which boot.

    None where there is none, or only a zombie.
    """
    try:
        # The name of the program, in brackets, may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _mark_by_ps(pid)
    return None if state in (b"Z", b"X") else f"{_boot()} {fields[18].decode()}"


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return "-"


def _mark_by_ps(pid: int) -> str | None:
    """Where there is no /proc, as on macOS."""
    asked = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
    )
    state, _, created = asked.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else created.strip()


def keep(folder: Path) -> int:
    """Starts what the record says, waits for it, and writes down how it ended; returns its exit code."""
    starts: list[dict[str, Any]] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))["starts"]
    number, child, stopping = len(starts), None, False
    told, ended = process_file(folder, number), exit_file(folder, number)
    for path in (told, ended):
        _take_room(path)

    def pass_on(_: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    for name in ("SIGHUP", "SIGINT"):  # functions that do nothing, as a child would inherit SIG_IGN
        signal.signal(getattr(signal, name), lambda _, frame: None)
    with (folder / LOG_FILE).open("ab", buffering=0) as log:
        try:
            child = subprocess.Popen(
                starts[-1]["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        except OSError as error:
            log.write(f"error: {starts[-1]['command'][0]} can't be started: {error}\n".encode())
            _tell(ended, {"code": 127, "ended": time.time()})
            return 127
    if stopping:
        child.send_signal(signal.SIGTERM)
    _tell(told, {"keeper": _identity(os.getpid()), "child": _identity(child.pid)})
    _release_stdout()
    code = child.wait()
    _tell(ended, {"code": code, "ended": time.time()})
    return code


def _identity(pid: int) -> dict[str, Any]:
    return {"pid": pid, "mark": process_mark(pid)}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _take_room(path: Path) -> None:
    """Takes the bytes of a file on the disk before the trainer is started, lest a disk that is full by then lose it."""
    with _beside(path).open("wb") as file:
        file.write(b" " * _ROOM)
        file.flush()
        os.fsync(file.fileno())


def _tell(path: Path, content: dict[str, Any]) -> None:
    """Writes a file into the room that was taken for it, wholly or not at all."""
    with _beside(path).open("r+b") as file:  # JSON may end with blanks
        file.write(json.dumps(content).encode())
        file.flush()
        os.fsync(file.fileno())
    _beside(path).replace(path)


def _release_stdout() -> None:
    """Whoever waits at the other end of stdout learns that the trainer was started."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
