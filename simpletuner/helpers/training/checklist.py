"""What a run is about to do, checked before its first step: a table for people, `checklist.json` for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from simpletuner.helpers.models.targets import within
from simpletuner.helpers.training.checklist_alignment import alignment_checks, layersync_checks
from simpletuner.helpers.training.checklist_words import Check, told_count, told_dtype, told_shape

if TYPE_CHECKING:
    from simpletuner.helpers.training.trainer import Trainer

CHECKLIST_FILE = "checklist.json"
ADAPTER = ".lora_"  # in the names of a LoRA's parameters, between the adapted layer's name and the rest
SPOILT = "Another program has spoilt the cache: set another cache_dir, or remove this one; it is made anew."

Batch = dict[str, Any]


def checklist(trainer: Trainer) -> list[Check]:
    """Looks at a run that is set up: its model, taps, projector, teacher, first batch and schedule.

    One batch is read, but not consumed, and no model runs.

    Raises:
        DatasetError: a record of the batch is missing or damaged.
    """
    batch = trainer.coming_batch()
    return [
        *_model(trainer),
        *alignment_checks(trainer, batch),
        *layersync_checks(trainer),
        *_batch(batch),
        *_training(trainer),
    ]


def require_checklist(trainer: Trainer) -> None:
    """Writes `checklist.json`, prints the list once where the run is live, and ends a run that isn't as it must be.

    Raises:
        ValueError: names what failed, and the mends. Or `DatasetError` as `checklist`.
    """
    checks = checklist(trainer)
    if trainer.accelerator.is_main_process:
        write_checklist(checks, trainer.output_dir / CHECKLIST_FILE, step=trainer.step)
        if trainer.live:
            Console(stderr=True).print(table(checks))
    failed = [check for check in checks if not check.ok]
    if failed:
        told = " ".join(f"{check.name}: {check.value}. {check.mend}" for check in failed)
        raise ValueError(f"The run can't begin: {told}")


def write_checklist(checks: list[Check], path: Path, *, step: int) -> None:
    """Writes `{"step", "ok", "checks": [{"name", "value", "ok", "mend"}]}`, whole or not at all."""
    content = {"step": step, "ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


def table(checks: list[Check]) -> Table:
    """The list for a terminal."""
    lines = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for column in ("mark", "name", "value"):
        lines.add_column(column, no_wrap=column != "value")
    for check in checks:
        mark = Text("✓", "green") if check.ok else Text("✗", "bold red")
        lines.add_row(mark, Text(check.name, "bold"), Text(check.value))
    return lines


# The model


def _model(trainer: Trainer) -> Iterator[Check]:
    model = trainer.foundation.unwrap_model()
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    total, count = (sum(p.numel() for p in part.values()) for part in (parameters, trained))
    share = f"{told_count(count)} of them trained ({count / total:.2%})"
    value = f"{type(model).__name__}, {told_count(total)} parameters, {share}"
    yield Check("model", value, count > 0, "Nothing is trained: see trainable_prefixes and model_type.")
    yield (_adapters if trainer.config.model_type == "lora" else _trained_part)(trainer, list(trained))


def _adapters(trainer: Trainer, trained: list[str]) -> Check:
    """The layers with a LoRA, and whether nothing else is trained."""
    prefixes = trainer.config.trainable_prefixes
    layers = list(dict.fromkeys(name.partition(ADAPTER)[0] for name in trained if ADAPTER in name))
    astray = [name for name in trained if ADAPTER not in name or not within(name, prefixes)]
    value = f"rank {trainer.config.lora_rank} on {len(layers)} layers{_where(layers, prefixes)}"
    if astray:
        value += f"; {len(astray)} trained parameters are no part of it, such as {astray[0]}"
    mend = "Only adapters within trainable_prefixes may be trained: freeze the others."
    return Check("LoRA", value, not astray and bool(layers), mend)


def _trained_part(trainer: Trainer, trained: list[str]) -> Check:
    prefixes = trainer.config.trainable_prefixes
    if prefixes is None:
        return Check("trained part", "the whole model")
    astray = [name for name in trained if not within(name, prefixes)]
    value = f"{len(trained)} tensors{_where(trained, prefixes)}"
    if astray:
        value += f"; {len(astray)} outside, such as {astray[0]}"
    return Check("trained part", value, not astray, "Freeze what lies outside of trainable_prefixes.")


def _where(names: list[str], prefixes: list[str] | None) -> str:
    """How many of the names lie in each part, or, where no parts are named, how many there are of each kind."""
    if prefixes is None:
        counts = Counter(name.partition(".")[0] for name in names)
    else:
        counts = Counter({prefix.rstrip("."): sum(within(name, [prefix]) for name in names) for prefix in prefixes})
    return f": {', '.join(f'{part} {count}' for part, count in counts.items())}" if counts else ""


# The first batch


def _batch(batch: Batch) -> Iterator[Check]:
    """Shapes, and whether every number is finite."""
    latents = batch["latents"]
    moments = f", mean {latents.float().mean():.3g}, deviation {latents.float().std():.3g}"
    yield _finite("latents", {"": latents}, moments)
    yield _finite("text", batch["text"])
    if "features" in batch:
        yield _finite("features", batch["features"])
    if "pixels" in batch:
        yield _finite("pixels", {"": batch["pixels"]})


def _finite(name: str, tensors: dict[str, Tensor], more: str = "") -> Check:
    ok = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    shapes = (f"{label} {told_shape(part)} {told_dtype(part)}".lstrip() for label, part in sorted(tensors.items()))
    return Check(name, f"{', '.join(shapes)}, {'finite' if ok else 'not all finite'}{more if ok else ''}", ok, SPOILT)


# The training


def _training(trainer: Trainer) -> Iterator[Check]:
    config, accelerator, foundation = trainer.config, trainer.accelerator, trainer.foundation
    objective: str = foundation.prediction_type
    if foundation.predicts_otherwise:
        objective += ", other than the model was made for: sample with the scheduler that is saved beside it"
    if config.snr_gamma is not None:
        objective += f", min-SNR {config.snr_gamma:g}"
    precision = "fp32" if config.mixed_precision == "no" else f"mixed precision {config.mixed_precision}"
    yield Check("objective", f"{objective}; {precision}")
    rate = f"{config.optimizer}, learning rate {config.learning_rate:g}, {config.lr_scheduler}"
    if config.lr_scheduler != "constant" and config.lr_warmup_steps:
        rate += f" with a warm-up until step {config.lr_warmup_steps}"
    yield Check("optimizer", f"{rate}, weight decay {config.adam_weight_decay:g}")
    every = "every step" if config.ema_update_interval == 1 else f"every {config.ema_update_interval} steps"
    yield Check("EMA", "off" if trainer.ema is None else f"decay {config.ema_decay:g}, {every}")
    sizes = (config.train_batch_size, config.gradient_accumulation_steps, accelerator.num_processes)
    processes = "process" if sizes[2] == 1 else "processes"
    yield Check("batch", f"{prod(sizes)} = {sizes[0]} × {sizes[1]} accumulated × {sizes[2]} {processes}")
    steps = trainer.total_steps
    passes = steps * sizes[1] / len(trainer.sampler)
    begins = f", begun at step {trainer.step}" if trainer.step else ""
    told = f"{passes:.3g}" if passes < 1000 else f"{passes:,.0f}"
    yield Check("run", f"{steps} steps{begins}, {told} passes over {len(trainer.samples)} samples")
