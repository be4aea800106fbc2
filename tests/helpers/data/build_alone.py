"""What tests run in processes of their own: builds of caches that are killed, and the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import simpletuner.helpers.training.run  # noqa: F401  (what the commands import when they run)
from simpletuner.cli import main
from simpletuner.configuration.config import Config
from simpletuner.helpers.data.build import Caches, build_caches
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.data.scan import find_samples
from simpletuner.helpers.models.registry import foundation_class
from tests.helpers.data.apart import Say
from tests.helpers.data.caches import Watch
from tests.helpers.data.files import make_entry

foundation_class("sd3")  # imported before the processes are forked


def build(config: Config, data: Path, end: int | str | None = None, **how: Any) -> tuple[list[Sample], Caches, Watch]:
    """Builds the caches of a folder with a foundation and an accelerator of its own."""
    torch.set_num_threads(1)
    foundation = foundation_class(config.model_family)(config, Accelerator(cpu=True))
    watch = Watch(foundation, end)
    samples = find_samples([make_entry(data)], config, foundation.family, foundation.accelerator)
    with CacheProgress(enabled=False) as progress:
        caches = build_caches(samples, foundation, config, progress, **how)
    return samples, caches, watch


def command(say: Say, *arguments: str) -> None:
    """The command line; ends with its exit code."""
    torch.set_num_threads(1)
    sys.exit(main(arguments))
