"""How busy the machine is that the server runs on: processors, memory, GPUs."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from typing import Any

import psutil

_ASK_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 30.0  # after it failed
_GPU_FACTS = ("name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")
_lock = threading.Lock()
_known: tuple[float, dict[str, Any]] = (0.0, {})
_gpus_refused_until = 0.0

psutil.cpu_percent()  # it tells the time since it was last asked


def machine_state() -> dict[str, Any]:
    """`cpu_percent` of all processors together, `memory` and `gpus`; asked at most once a second.

    `memory` has `used` and `total` in bytes. A GPU has `name`, `utilisation` in percent, `memory_used` and
    `memory_total` in bytes, and `temperature` in °C; None for what it doesn't tell.
    """
    global _known
    with _lock:
        asked, state = _known
        if not state or time.monotonic() - asked >= _ASK_SECONDS:
            memory = psutil.virtual_memory()
            state = {
                "cpu_percent": psutil.cpu_percent(),
                "memory": {"used": memory.total - memory.available, "total": memory.total},
                "gpus": _gpus(),
            }
            _known = (time.monotonic(), state)
        return state


def _gpus() -> list[dict[str, Any]]:
    global _gpus_refused_until
    program = shutil.which("nvidia-smi")
    if program is None or time.monotonic() < _gpus_refused_until:
        return []
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={','.join(_GPU_FACTS)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        _gpus_refused_until = time.monotonic() + _ASK_AGAIN_SECONDS
        return []
    return read_gpus(answer.stdout)


def read_gpus(answer: str) -> list[dict[str, Any]]:
    """What `nvidia-smi` says, a line a GPU: name, percent, MiB, MiB, °C; "[N/A]" for what it doesn't know."""
    gpus = []
    for line in answer.splitlines():
        name, *values = (part.strip() for part in line.rsplit(",", len(_GPU_FACTS) - 1))
        if len(values) != len(_GPU_FACTS) - 1:
            continue
        busy, used, total, temperature = map(_number, values)
        gpus.append(
            {
                "name": name,
                "utilisation": busy,
                "memory_used": None if used is None else used * 2**20,
                "memory_total": None if total is None else total * 2**20,
                "temperature": temperature,
            }
        )
    return gpus


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
