"""Fixtures that several rooms use: tiny model folders and the foundations made from them."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from simpletuner.configuration import Config
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.registry import foundation_class
from tests import tiny_models
from tests.families import CASES

MakeFoundation = Callable[..., ModelFoundation]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The machine's cores belong to the test workers, and sums don't depend on how threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, by what the tests start too: a script ignores it in what it starts in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Much collects garbage, which would take most of its time here: the libraries' objects are left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """What a test draws doesn't depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def own_precision() -> Iterator[None]:
    """For tests of several precisions: accelerate keeps that of the first accelerator for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder("sd3")`: a model folder with random weights, made once a session; don't write into it."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.tiny_folder(family, root)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights: a value for `crepa_encoder` and `urepa_model`."""
    return tiny_models.tiny_teacher(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="session")
def make_foundation(tiny_folder: Callable[[str], Path]) -> MakeFoundation:
    """`make_foundation("sd3", crepa_enabled=True)`: a foundation on the CPU, in fp32, nothing loaded yet."""

    def make(folder: str, **options: Any) -> ModelFoundation:
        family = CASES[folder].name
        settings = {"model_type": "full", "mixed_precision": "no", "lora_rank": 4} | options
        config = Config(model_family=family, pretrained_model_name_or_path=str(tiny_folder(folder)), **settings)
        return foundation_class(family)(config, Accelerator(cpu=True))

    return make
