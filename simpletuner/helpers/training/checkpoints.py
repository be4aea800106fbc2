"""Checkpoints: written to a temporary folder and renamed, found again only if intact.

A checkpoint holds what `accelerate` saves (optimizer, random states of every rank), the trained weights, and the
objects registered with it (learning-rate schedule, EMA, regularizer, sampler).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from simpletuner.configuration import Config
from simpletuner.helpers.utils.run_folder import MANIFEST, checkpoint_folder, find_checkpoints, read_state

logger = logging.getLogger(__name__)

SHAPING_OPTIONS = (
    "model_family",
    "model_type",
    "lora_rank",
    "peft_lora_target_modules",
    "trainable_prefixes",
    "optimizer",
    "use_ema",
    *(f"{x}_{name}" for x in ("crepa", "urepa") for name in ("enabled", "projector", "projector_width")),
    *(f"{x}_feature_cache_dim" for x in ("crepa", "urepa")),
    "crepa_encoder",
    "crepa_block_index",
    "crepa_feature_source",
    "urepa_model",
    "urepa_align_layers",
    "irepa_enabled",
    "irepa_projector_kernel_size",
)


def shaping_options(config: Config) -> dict[str, Any]:
    """The options that decide what a checkpoint holds."""
    return {name: getattr(config, name) for name in SHAPING_OPTIONS}


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, state: dict[str, Any], write: Callable[[Path], None], keep: int
) -> Path:
    """Writes a checkpoint so that it is there wholly or not at all, and removes the oldest beyond `keep` (0: none).

    Args:
        state: the trainer's own numbers (`step`, ...), JSON.
        write: writes everything else into the given folder; called on every rank.
    """
    final = checkpoint_folder(output_dir, state["step"])
    temporary = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write(temporary)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _seal(temporary, state)
            _put_in_place(temporary, final)
            _remove_oldest(output_dir, keep, final)
    except OSError as error:
        raise OSError(
            f"The checkpoint {final} can't be written ({error}). Free some disk space or choose another output_dir; "
            "earlier checkpoints are untouched."
        ) from error
    accelerator.wait_for_everyone()
    return final


def _seal(folder: Path, state: dict[str, Any]) -> None:
    """Writes the manifest: the trainer's state and the size of every file, all on disk before the rename."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in files:
        _sync(folder / name)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"state": state, "files": files}, indent=1), encoding="utf-8")
    _sync(manifest)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Renames a checkpoint to its name; one of the same step is set aside until then, never missing for both."""
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_oldest(output_dir: Path, keep: int, newest: Path) -> None:
    if keep > 0:
        for _, folder in find_checkpoints(output_dir)[:-keep]:
            if folder != newest:
                shutil.rmtree(folder)


def find_resumable(resume: str | None, output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `resume_from_checkpoint` means, and its state; None starts anew.

    `latest` takes the newest intact one, with a warning for those passed over; where there is none at all, the run
    starts anew, so that a command that is started again and again needs no other option the first time.

    Raises:
        ValueError: the checkpoint named by its path, or each of those that are there, isn't intact.
    """
    if resume is None:
        return None
    if resume != "latest":
        folder = Path(resume)
        state = read_state(folder)
        later = [path.name for step, path in find_checkpoints(output_dir) if step > state["step"]]
        if later:
            raise ValueError(
                f"resume_from_checkpoint: {folder} is of step {state['step']}, but {output_dir} holds later ones "
                f"({', '.join(later)}), which this run would mix with. Move them away, or set another output_dir."
            )
        return folder, state
    faults = []
    for _, folder in reversed(find_checkpoints(output_dir)):
        try:
            state = read_state(folder)
        except ValueError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            logger.warning(f"{fault} An earlier one is taken.")
        return folder, state
    if faults:
        raise ValueError(f"resume_from_checkpoint: {' '.join(faults)} Remove them, or set another output_dir.")
    logger.warning(f"resume_from_checkpoint: there is no checkpoint in {output_dir} yet; the run starts anew.")
    return None


def require_same_shape(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to resume where options that decide what a checkpoint holds have changed.

    Raises:
        ValueError: names each of them with both values.
    """
    changed = [
        f"{name} was {saved[name]!r} and is {now[name]!r}" for name in now if saved.get(name, now[name]) != now[name]
    ]
    if changed:
        raise ValueError(
            f"resume_from_checkpoint: {folder} was written with other options: {'; '.join(changed)}. Set them back, or "
            "start anew in another output_dir."
        )
