"""Trained runs, loaded to be looked at and not to be trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from simpletuner.configuration import Config
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.training.checkpoints import find_resumable
from simpletuner.helpers.training.ema import averaged_weights
from simpletuner.helpers.training.trainer import Trainer
from simpletuner.helpers.utils.run_folder import checkpoint_folder, find_checkpoints

LATEST = "latest"


@contextmanager
def loaded_run(config: Config, checkpoint: str | None) -> Iterator[Trainer]:
    """A run at one of its checkpoints, the averaged weights in its model, in evaluation mode.

    Nothing is written into the run's folder.

    Args:
        checkpoint: "latest", or the number of a step; None gives the run as it is before its training.

    Raises:
        ValueError: there is no such checkpoint, or it can't be used.
    """
    folder = None if checkpoint is None else str(find_checkpoint(config, checkpoint))
    clear_device_cache(garbage_collection=True)  # whoever looked at a run before has let go of it by now
    with tempfile.TemporaryDirectory() as scratch:
        changes: dict[str, Any] = {"output_dir": scratch, "resume_from_checkpoint": folder, "report_to": "none"}
        changes |= {"compile_model": False, "eval_steps_interval": 0}
        trainer = Trainer(config.model_copy(update=changes), live=False)
        if trainer.accelerator.num_processes > 1:
            raise ValueError("Representations are compared in one process: start this without `accelerate launch`.")
        trainer.setup()
        trainer.foundation.unwrap_model().eval()
        with averaged_weights(trainer.ema, trainer.parameters):
            yield trainer
        trainer.accelerator.free_memory()


def find_checkpoint(config: Config, wanted: str) -> Path:
    """The folder of a run's checkpoint: the newest intact one for "latest", or that of a step.

    Raises:
        ValueError: names `output_dir` and what is there.
    """
    output_dir = Path(config.output_dir)
    steps = [step for step, _ in find_checkpoints(output_dir)]
    if not steps:
        raise ValueError(f"output_dir: {str(output_dir)!r} holds no checkpoint. Train this configuration first.")
    if wanted == LATEST:
        found = find_resumable(LATEST, output_dir)
        assert found is not None
        return found[0]
    if not wanted.isdecimal() or int(wanted) not in steps:
        there = ", ".join(map(str, steps))
        raise ValueError(
            f"checkpoint: {wanted!r} is no checkpoint in {str(output_dir)!r}; there are those of steps {there}."
        )
    return checkpoint_folder(output_dir, int(wanted))


def spread_samples(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, spread evenly over the data; those seen mirrored are left to their originals."""
    originals = [sample for sample in samples if not sample.mirrored]
    count = min(count, len(originals))
    return [originals[index * len(originals) // count] for index in range(count)]
