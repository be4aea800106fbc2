"""`simpletuner train`: a run with its faults told as a person would tell them."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
import transformers
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError

import simpletuner
from simpletuner.configuration import Config
from simpletuner.configuration.dataset import load_dataset_config
from simpletuner.helpers.data.build import told_bytes
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.estimate import Estimate, estimate, formats_table, parts_table
from simpletuner.helpers.data.records import LATENT_FORMATS
from simpletuner.helpers.data.scan import find_samples
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.models.sizes import latent_shapes, prompt_bytes
from simpletuner.helpers.training.reporting import NonFiniteLossError
from simpletuner.helpers.training.trainer import Trainer, make_accelerator, prepare_data
from simpletuner.helpers.training.validation import validation_prompts
from simpletuner.helpers.utils.run_folder import PREFIX, find_checkpoints

CONFIGURATION_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130
PACKAGE = Path(simpletuner.__file__).parent
Prepared = TypeVar("Prepared")

PREPARING = "while preparing. What is cached so far is kept; start again to go on."

TORCH_WRITER_SIGNS = ("PytorchStreamWriter", "inline_container", "unexpected pos")


def run_training(config: Config) -> int:
    """Trains, and returns the exit code.

    Faults that a user can mend are one message without a traceback: 2 where configuration, data or model can't be
    used, 1 where the run broke, 130 where Ctrl-C ended it at once. A Ctrl-C that saves first counts as success.
    """
    console = _speak_plainly()
    trainer = _prepared(console, config, partial(_set_up, config))
    return trainer if isinstance(trainer, int) else _run(trainer, console)


def run_caching(config: Config, *, rebuild: bool) -> int:
    """Caches what a training of this configuration reads, and checks what is there; returns the exit code."""
    console = _speak_plainly()
    return _prepared(console, config, partial(_cache, config, console, rebuild=rebuild))


def run_estimate(config: Config, *, samples: int | None = None) -> int:
    """Prints what the caches hold and what disk the rest takes, and what `samples` would take; encodes nothing.

    Returns the exit code.
    """
    console = _speak_plainly()
    return _prepared(console, config, partial(_estimate, config, console, samples))


def run_evaluation(config: Config, checkpoint: str) -> int:
    """Evaluates a trained run by samples and prints the measures; returns the exit code."""
    from simpletuner.evaluation.evaluate import evaluate_run, evaluation_folder, table

    console = _speak_plainly()
    stopped = "before the end. What is made so far is kept; start again to go on."
    result = _prepared(console, config, partial(evaluate_run, config, checkpoint), stopped)
    if isinstance(result, int):
        return result
    if result is not None:
        Console().print(table(result))
        if result["note"] is not None:
            _say(console, "Note", result["note"])
        _say(console, "Written", f"{evaluation_folder(Path(config.output_dir), result['step'])}.")
    return 0


def run_task(config: Config, task: Callable[[], None]) -> int:
    """Does what reads runs and trains none, such as a report; returns the exit code."""
    done = _prepared(_speak_plainly(), config, task)
    return done if isinstance(done, int) else 0


def _prepared(
    console: Console, config: Config, prepare: Callable[[], Prepared], stopped: str = PREPARING
) -> Prepared | int:
    """What `prepare` gives, or an exit code and a message where it fails for reasons that a user can mend."""
    try:
        return prepare()
    except ValueError as error:  # DatasetError is one
        _say(console, "error", str(error))
        return CONFIGURATION_ERROR
    except (OSError, torch.OutOfMemoryError) as error:
        _say(console, "error", _told(error, config) or str(error))
        return RUN_ERROR
    except KeyboardInterrupt:
        _say(console, "Stopped", stopped)
        return INTERRUPTED


def _set_up(config: Config) -> Trainer:
    _require_output_dir(config)
    trainer = Trainer(config)
    _require_gpu_for_fp16(config, trainer.accelerator.device)
    _remove_unfinished(trainer)
    trainer.setup()
    return trainer


def _cache(config: Config, console: Console, *, rebuild: bool) -> int:
    accelerator = make_accelerator(config)
    foundation = foundation_class(config.model_family)(config, accelerator)
    foundation.verify()
    samples, caches = prepare_data(config, foundation, live=True, verify=True, rebuild=rebuild)
    if accelerator.is_main_process:
        for store in caches.stores(samples):
            counts = store.manifest()
            size = counts["bytes"] / 2**20
            kind = "prompts" if counts["kind"] == "text" else counts["kind"]
            _say(console, "Cached", f"{counts['records']} {kind} in {store.folder}, {size:,.1f} MiB.")
    accelerator.end_training()
    return 0


def _estimate(config: Config, console: Console, count: int | None) -> int:
    accelerator = make_accelerator(config)
    foundation = foundation_class(config.model_family)(config, accelerator)
    foundation.verify()
    entries, _ = load_dataset_config(Path(config.data_backend_config))
    samples = find_samples(entries, config, foundation.family, accelerator)
    shapes = latent_shapes(foundation, {sample.bucket for sample in samples})
    found = estimate(
        samples,
        foundation,
        config,
        latent_bytes=lambda bucket: math.prod(shapes[bucket]) * LATENT_FORMATS[config.vae_cache_dtype].itemsize,
        prompt_bytes=prompt_bytes(foundation),
        more_prompts=validation_prompts(config),
    )
    if accelerator.is_main_process:
        _print_estimate(found, config, console, count)
    accelerator.end_training()
    return 0


def _print_estimate(found: Estimate, config: Config, console: Console, count: int | None) -> None:
    printed = Console()
    printed.print(parts_table(found, count))
    if found.features is not None:
        printed.print(formats_table(found.features, found.samples, len(found.samples) if count is None else count))
    unknown = "" if all(part.size is not None for part in found.parts) else ", and what is known once encoded"
    needed = f"{told_bytes(found.needed)}{unknown}"
    printed.print(f"To be made: {needed}. Free in {config.cache_dir}: {told_bytes(found.free)}.", soft_wrap=True)
    if found.needed > found.free:
        _say(console, "warning", "the disk is too small. Free space, or set another cache_dir.")


def _run(trainer: Trainer, console: Console) -> int:
    is_main = trainer.accelerator.is_main_process
    if is_main and trainer.step >= trainer.total_steps:
        _say(
            console,
            "warning",
            f"the run ends at step {trainer.total_steps}, and the checkpoint is at step {trainer.step}: nothing is "
            "left to train. Raise max_train_steps or num_train_epochs to go on.",
        )
    try:
        trainer.run()
    except (ValueError, OSError, SafetensorError, RuntimeError) as error:
        message = _told(error, trainer.config) or _told_of_writing(error, trainer)
        if message is None:
            raise
        _remove_unfinished(trainer)
        _say(console, "error", message)
        _say_how_to_resume(console, trainer)
        return RUN_ERROR
    except KeyboardInterrupt:
        _say(console, "Stopped", f"at once, after step {trainer.step}.")
        _say_how_to_resume(console, trainer)
        return INTERRUPTED
    if is_main and trainer.step < trainer.total_steps:
        _say(console, "Stopped", f"after step {trainer.step}; continue with --resume_from_checkpoint latest.")
    elif is_main:
        _say(console, "Done", f"after step {trainer.step}; the model is in {trainer.output_dir}.")
    return 0


# What is refused before anything is read


def _require_output_dir(config: Config) -> None:
    """The folder can be made and written, and holds no other run's checkpoints, which this one would mix with.

    Raises:
        ValueError: names `output_dir` and the mend.
    """
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir: {str(folder)!r} can't be made: {error.strerror}. Set another folder.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"output_dir: {str(folder)!r} can't be written. Set another, or change its permissions.")
    if config.resume_from_checkpoint is None and (found := find_checkpoints(folder)):
        raise ValueError(
            f"output_dir: {str(folder)!r} holds checkpoints of an earlier run, up to step {found[-1][0]}. Continue it "
            "with --resume_from_checkpoint latest, or set another output_dir to start anew."
        )


def _require_gpu_for_fp16(config: Config, device: torch.device) -> None:
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "mixed_precision: fp16 is for GPUs, and this run is on the CPU, where small gradients would vanish. Use "
            "bf16 or no."
        )


def _unfinished(trainer: Trainer) -> list[Path]:
    """Folders of checkpoints whose writing was broken off."""
    return list(trainer.output_dir.glob(f".{PREFIX}*.partial"))


def _remove_unfinished(trainer: Trainer) -> None:
    if trainer.accelerator.is_main_process:
        for folder in _unfinished(trainer):
            shutil.rmtree(folder, ignore_errors=True)


# What is said


def _speak_plainly() -> Console:
    """Log lines look like our other messages; libraries speak only where a user can do something about it."""
    console = Console(stderr=True, soft_wrap=True)
    logging.basicConfig(level=logging.WARNING, handlers=[_Messages(console)])
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    threading.excepthook = partial(_told_of_thread, console)
    # diffusers passes an argument that huggingface_hub takes no more.
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*", category=UserWarning)
    return console


class _Messages(logging.Handler):
    """Writes a record as `warning: text` on stderr, above a progress bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        with self._console.capture() as captured:
            _say(self._console, record.levelname.lower(), record.getMessage())
        sys.stderr.write(captured.get())  # which a live progress bar has replaced by a stream of its own


def _say(console: Console, kind: str, message: str) -> None:
    colours = {"error": "bold red", "warning": "yellow"}
    separator = ": " if kind in colours else " "
    console.print(Text.assemble((kind, colours.get(kind, "bold")), separator, message))


def _say_how_to_resume(console: Console, trainer: Trainer) -> None:
    checkpoints = find_checkpoints(trainer.output_dir)
    if checkpoints and trainer.accelerator.is_main_process:
        _say(console, "Kept", f"{checkpoints[-1][1]}; continue from it with --resume_from_checkpoint latest.")


def _told(error: Exception, config: Config) -> str | None:
    """The fault in words for a user; None where it is not one of theirs."""
    match error:
        case DatasetError() | NonFiniteLossError():
            return str(error)
        case ValueError() | RuntimeError() if _is_ours(error):
            return str(error)
        case OSError(strerror=None):  # in our own words
            return str(error)
        case OSError():
            where = f"output_dir: {config.output_dir!r}" if error.filename is None else str(error.filename)
            mend = "Free some disk space, or set another output_dir or cache_dir."
            return f"{where} can't be read or written: {error.strerror}. {mend}"
        case torch.OutOfMemoryError():
            reason = str(error).partition(". ")[0]
            return (
                f"The device's memory is too small ({reason}). Lower train_batch_size, resolution or vae_batch_size, "
                "turn on gradient_checkpointing, or use mixed_precision bf16 and model_type lora."
            )
    return None


def _is_ours(error: Exception) -> bool:
    """Whether our own code refused something, in words for users; a library's error is told with its traceback."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)


def _told_of_writing(error: Exception, trainer: Trainer) -> str | None:
    """A refusal of the disk as safetensors and torch raise it, with no error number; None where it is none."""
    # torch's writer knows no OSError: it raises a RuntimeError of its C++ source.
    by_torch = isinstance(error, RuntimeError) and any(sign in str(error) for sign in TORCH_WRITER_SIGNS)
    if not (by_torch or isinstance(error, SafetensorError)):
        return None
    what = "checkpoint" if _unfinished(trainer) else "trained model"
    reason = str(error).strip().partition("\n")[0]
    return (
        f"output_dir: the {what} of step {trainer.step} can't be written to {str(trainer.output_dir)!r} ({reason}). "
        "Free some disk space; earlier checkpoints are untouched."
    )


def _told_of_thread(console: Console, fault: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread of its own, whose traceback would tell a user nothing."""
    if isinstance(fault.exc_value, OSError):
        _say(
            console, "warning", f"output_dir: no logs can be written: {fault.exc_value.strerror}. Free some disk space."
        )
    else:
        threading.__excepthook__(fault)
