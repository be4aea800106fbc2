"""How busy the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner.webui.machine import machine_state, read_gpus


def test_processors_and_memory() -> None:
    state = machine_state()
    assert 0 <= state["cpu_percent"] <= 100
    assert 0 < state["memory"]["used"] < state["memory"]["total"]
    assert machine_state() is state  # asked once a second


def test_what_nvidia_smi_says() -> None:
    answer = "NVIDIA H200, 37, 1024, 143771, 41\nNVIDIA, odd, [N/A], 12, [N/A], [Not Supported]\nno answer\n"
    assert read_gpus(answer) == [
        {
            "name": "NVIDIA H200",
            "utilisation": 37,
            "memory_used": 2**30,
            "memory_total": 143771 * 2**20,
            "temperature": 41,
        },
        {
            "name": "NVIDIA, odd",
            "utilisation": None,
            "memory_used": 12 * 2**20,
            "memory_total": None,
            "temperature": None,
        },
    ]


@pytest.mark.parametrize(
    ("script", "names"),
    [("echo 'A, B, 3, 1, 2, 40'", ["A, B"]), ("echo A, 1, 1, 1, 1; exit 9", []), ("kill -9 $$", [])],
)
def test_an_nvidia_smi_that_fails_is_no_gpu(tmp_path: Path, script: str, names: list[str]) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    code = "from simpletuner.webui.machine import machine_state as m; print([gpu['name'] for gpu in m()['gpus']])"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(names)
