"""Killed builds go on where they were, and several processes share the work."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.data.files import tiny_options, write_images

ROOT = Path(__file__).parents[3]
COUNT = 5


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., list[str]]:
    """The command that builds the caches of five images, in batches of two."""
    data = write_images(tmp_path / "data", [(32, 32)] * COUNT)
    options = tiny_options(tmp_path, resolution=32)
    options |= {"model_family": "sd1x", "pretrained_model_name_or_path": "nobody/nothing"}

    def make(die_at: int | None = None) -> list[str]:
        order = {"data": str(data), "options": options, "die_at": die_at}
        return [sys.executable, "-m", "tests.helpers.data.build_alone", json.dumps(order)]

    return make


def start(command: list[str], **environment: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> dict[str, int]:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def test_a_kill_loses_at_most_the_batch_in_flight(order: Callable[..., list[str]]) -> None:
    killed = start(order(die_at=2))
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert result(start(order())) == {"images": COUNT - 4, "prompts": COUNT + 1}


def test_two_processes_build_each_a_slice(tmp_path: Path, order: Callable[..., list[str]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = [start(order(), RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]
    assert [result(rank) for rank in ranks] == [{"images": 3, "prompts": 3}, {"images": 2, "prompts": 3}]
    assert len(list((tmp_path / "caches" / "vae").rglob("*.safetensors"))) == COUNT
    assert len(list((tmp_path / "caches" / "text").rglob("*.safetensors"))) == COUNT + 1
