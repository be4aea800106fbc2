"""`simpletuner train`: a run with its faults told as a person would tell them."""

from __future__ import annotations

import logging

import diffusers
import transformers
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from simpletuner.configuration import Config
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.training.reporting import NonFiniteLossError
from simpletuner.helpers.training.trainer import Trainer

CONFIGURATION_ERROR, RUN_ERROR = 2, 1


def run_training(config: Config) -> int:
    """Trains, and returns the exit code: 2 where configuration, data or model can't be used, 1 where the run broke.

    Faults that a user can mend are one message without a traceback.
    """
    console = Console(stderr=True, soft_wrap=True)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        trainer = Trainer(config)
        trainer.setup()
    except (DatasetError, ValueError) as error:
        console.print(Text.assemble(("error", "bold red"), f": {error}"))
        return CONFIGURATION_ERROR
    try:
        trainer.run()
    except (DatasetError, NonFiniteLossError, OSError) as error:
        console.print(Text.assemble(("error", "bold red"), f": {error}"))
        return RUN_ERROR
    if not trainer.accelerator.is_main_process:
        return 0
    if trainer.step < trainer.total_steps:
        console.print(f"Stopped after step {trainer.step}; continue with --resume_from_checkpoint latest.")
    else:
        console.print(f"Done: {trainer.step} steps; the model is in {trainer.output_dir}.")
    return 0
