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

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
MANIFEST = "manifest.json"


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return output_dir / f"{PREFIX}{step}"


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
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            _sync(output_dir)
            _remove_oldest(output_dir, keep)
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


def _remove_oldest(output_dir: Path, keep: int) -> None:
    if keep > 0:
        for _, folder in find_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(folder)


def find_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints in `output_dir`, oldest first, intact or not."""
    found = []
    for folder in output_dir.glob(f"{PREFIX}*"):
        step = folder.name.removeprefix(PREFIX)
        if folder.is_dir() and step.isdecimal():
            found.append((int(step), folder))
    return sorted(found)


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer's state in a checkpoint.

    Raises:
        ValueError: the checkpoint isn't intact; says which file is missing or torn.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no intact checkpoint: its {MANIFEST} can't be read ({error}).") from error
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{folder} is no intact checkpoint: {name} is missing or torn.")
    return manifest["state"]


def find_resumable(resume: str | None, output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `resume_from_checkpoint` means, and its state; None starts anew.

    `latest` takes the newest intact one, with a warning for those passed over.

    Raises:
        ValueError: a checkpoint named by its path isn't intact.
    """
    if resume is None:
        return None
    if resume != "latest":
        folder = Path(resume)
        return folder, read_state(folder)
    for _, folder in reversed(find_checkpoints(output_dir)):
        try:
            return folder, read_state(folder)
        except ValueError as error:
            logger.warning(f"{error} Taking the one before.")
    return None
