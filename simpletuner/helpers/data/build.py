"""Fills the caches before training: VAE latents and text embeddings, each process its slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from simpletuner.configuration.config import Config
from simpletuner.helpers.data.cache import TensorStore
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.parallel import ordered_map
from simpletuner.helpers.data.records import Record, Records
from simpletuner.helpers.data.samples import Sample

PROMPT_BATCH_SIZE = 8
EMPTY_PROMPT = ""

Item = TypeVar("Item", Sample, str)


class Encoder(Protocol):
    """What the caches need of a model foundation, which loads its weights when it first encodes."""

    @property
    def accelerator(self) -> Accelerator: ...
    def observe_captions(self, captions: Iterable[str]) -> None: ...
    def unload_vae(self) -> None: ...
    def unload_text_encoders(self) -> None: ...
    def encode_pixels(self, pixels: Tensor) -> Tensor: ...
    def encode_prompts(self, prompts: list[str]) -> list[dict[str, Tensor]]: ...


def cache_progress(*, enabled: bool) -> Progress:
    """A progress display for ``build_caches``; enable it in the main process only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    # Not in a file or a pipe, where it would be frozen bars without an end.
    disable = not (enabled and console.is_terminal)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=disable)


def build_caches(
    samples: Sequence[Sample],
    foundation: Encoder,
    config: Config,
    progress: Progress,
    *,
    more_prompts: Sequence[str] = (),
) -> None:
    """Makes what is missing or damaged of the samples' latents and prompts (and the empty prompt, for dropout).

    ``more_prompts`` are encoded too, for whoever reads them with ``Records.prompt``: the validation's. Every process
    makes its slice and waits for the others. Records are written batch by batch, so a killed run loses at most the
    batch in flight.

    Raises:
        DatasetError: a file became unreadable since the scan, the VAE gave non-finite latents, or the disk refuses.
    """
    records = Records(config, samples)
    foundation.observe_captions(sample.caption for sample in samples)
    if foundation.accelerator.is_main_process:
        for folder in {records.text.folder, *(sample.latent_folder for sample in samples)}:
            TensorStore(folder).remove_leftovers()
    _build_latents(samples, foundation, config, records, progress)
    prompts = sorted({EMPTY_PROMPT, *more_prompts, *(sample.caption for sample in samples)})
    _build_text(prompts, foundation, config, records, progress)
    foundation.accelerator.wait_for_everyone()


def _build_latents(
    samples: Sequence[Sample], foundation: Encoder, config: Config, records: Records, progress: Progress
) -> None:
    in_buckets = sorted(samples, key=lambda sample: (sample.bucket, sample.id))
    wanted = {records.latents(sample): sample for sample in in_buckets}
    missing = _find_missing(wanted, foundation.accelerator, config, progress, "latents")
    if not missing:
        return
    task = progress.add_task("Encoding latents", total=len(missing))
    by_bucket = (list(group) for _, group in groupby(missing, key=lambda pair: pair[1].bucket))
    batches = (batch for group in by_bucket for batch in _chunks(group, config.vae_batch_size))
    for batch, pixels in ordered_map(_with_pixels, batches, config.max_workers):
        with torch.no_grad():
            latents = foundation.encode_pixels(pixels).cpu()
        for (record, sample), latent in zip(batch, latents, strict=True):
            if not latent.isfinite().all():
                raise DatasetError(
                    f"{sample.path}: the VAE gives latents that are not finite. Remove the file; if it is so with "
                    f"others, the VAE in {config.pretrained_model_name_or_path!r} is damaged: get it again."
                )
            record.write({"latents": latent})
        progress.advance(task, len(batch))
    foundation.unload_vae()


def _build_text(
    prompts: Sequence[str], foundation: Encoder, config: Config, records: Records, progress: Progress
) -> None:
    wanted = {records.prompt(prompt): prompt for prompt in prompts}
    missing = _find_missing(wanted, foundation.accelerator, config, progress, "prompts")
    if not missing:
        return
    task = progress.add_task("Encoding prompts", total=len(missing))
    for batch in _chunks(missing, PROMPT_BATCH_SIZE):
        with torch.no_grad():
            embeddings = foundation.encode_prompts([prompt for _, prompt in batch])
        for (record, prompt), embedding in zip(batch, embeddings, strict=True):
            if not all(tensor.isfinite().all() for tensor in embedding.values()):
                raise DatasetError(
                    f"The text encoder gives embeddings that are not finite for the prompt {prompt!r}. Set "
                    f"mixed_precision, which is {config.mixed_precision!r}, to 'bf16' or 'no'; if that does not help, "
                    f"the weights in {config.pretrained_model_name_or_path!r} are damaged: get them again."
                )
            record.write(embedding)
        progress.advance(task, len(batch))
    foundation.unload_text_encoders()


def _find_missing(
    wanted: dict[Record, Item], accelerator: Accelerator, config: Config, progress: Progress, what: str
) -> list[tuple[Record, Item]]:
    """Of this process's slice, what is not there or damaged."""
    mine = list(wanted.items())[accelerator.process_index :: accelerator.num_processes]
    intact = ordered_map(Record.intact, [record for record, _ in mine], config.max_workers)
    checked = progress.track(intact, total=len(mine), description=f"Checking {what}")
    return [pair for pair, is_intact in zip(mine, checked, strict=True) if not is_intact]


def _chunks(items: Sequence[tuple[Record, Item]], size: int) -> Iterator[Sequence[tuple[Record, Item]]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _with_pixels(batch: Sequence[tuple[Record, Sample]]) -> tuple[Sequence[tuple[Record, Sample]], Tensor]:
    """The batch with its pixels `(B, T, 3, H, W)`."""
    return batch, torch.stack([sample.pixels() for _, sample in batch])
