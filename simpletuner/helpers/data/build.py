"""Fills the caches before training: VAE latents, teacher features and text embeddings, each process its slice."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from simpletuner.configuration.cache_sizes import on_disk
from simpletuner.configuration.config import Config
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.features import Aligned, FeatureCache, FeatureEncoder, claim_features, features_of_run
from simpletuner.helpers.data.parallel import ordered_map
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.data.records import Record, Records
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.data.store import StoreWriter, TensorStore

logger = logging.getLogger(__name__)

PROMPT_BATCH_SIZE = 8
EMPTY_PROMPT = ""

Item = TypeVar("Item")


class Encoder(Aligned, Protocol):
    """What the caches need of a model foundation, which loads its weights when it first encodes."""

    def observe_captions(self, captions: Iterable[str]) -> None: ...
    def unload_vae(self) -> None: ...
    def unload_text_encoders(self) -> None: ...
    def encode_pixels(self, pixels: Tensor) -> Tensor: ...
    def encode_prompts(self, prompts: list[str]) -> list[dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Caches:
    """What a run reads instead of encoding; `features` is None where no teacher is asked, or in the step."""

    records: Records
    features: FeatureCache | None

    def stores(self, samples: Sequence[Sample]) -> list[TensorStore]:
        """Every store that samples and their prompts are read from."""
        features = [] if self.features is None else [self.features.store]
        return [*self.records.latent_stores(samples), self.records.text, *features]


@dataclass(frozen=True)
class _Gap:
    """A sample of which something isn't cached."""

    sample: Sample
    latents: Record | None
    features: Record | None

    @property
    def group(self) -> tuple[object, ...]:
        """Samples of one group can be encoded in one batch."""
        return self.sample.bucket, self.latents is None, self.features is None


def build_caches(
    samples: Sequence[Sample],
    foundation: Encoder,
    config: Config,
    progress: CacheProgress,
    *,
    more_prompts: Sequence[str] = (),
    verify: bool = False,
    rebuild: bool = False,
) -> Caches:
    """Makes what is missing of the samples' latents, teacher features and prompts, and the empty prompt, for dropout.

    Each sample is decoded once for all that is made of it. Every process makes its slice and waits for the others.
    Records are written batch by batch, so a killed run loses at most what is in flight: the batch that is encoded and
    the one that is written.

    Args:
        more_prompts: are encoded too, for whoever reads them with ``Records.prompt``: the validation's.
        verify: reads every record and makes damaged ones again. Without it only files that can't be read at all are
            found, and a damaged record is told when training reads it.
        rebuild: throws the cached features away first, and whatever else has a manifest that can't be used.

    Raises:
        DatasetError: a file became unreadable since the scan, an encoder gave values that are not finite, the disk
            refuses, or the cached features are another teacher's.
        ValueError: an encoder can't be loaded.
    """
    caches = Caches(Records(config, samples), features_of_run(config, foundation, samples))
    foundation.observe_captions(sample.caption for sample in samples)
    prompts = sorted({EMPTY_PROMPT, *more_prompts, *(sample.caption for sample in samples)})
    stores = _claim(caches, samples, foundation.accelerator, rebuild=rebuild)
    if verify:
        _discard_damaged(stores, foundation.accelerator, config, progress)
    gaps, no_prompts = _find_gaps(caches, samples, stores), _missing_prompts(caches.records, prompts)
    foundation.accelerator.wait_for_everyone()  # before anyone writes, all have seen the same
    if gaps:
        _fill_gaps(gaps, caches, samples, foundation, config, progress)
    if no_prompts:
        _encode_prompts(no_prompts, caches.records, foundation, config, progress)
    foundation.accelerator.wait_for_everyone()
    if foundation.accelerator.is_main_process:
        for store in stores:
            if gaps or no_prompts or "records" not in store.manifest():  # of a run that was killed at its very end
                store.count()
    return caches


def _claim(caches: Caches, samples: Sequence[Sample], accelerator: Accelerator, *, rebuild: bool) -> list[TensorStore]:
    """Makes or checks the stores, the main process first; and throws away files that can't be read."""
    if accelerator.is_main_process and rebuild and caches.features is not None:
        caches.features.store.remove()
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            for store in caches.stores(samples):
                store.adopt_partial_shards()
        caches.records.claim(samples, replace=rebuild and accelerator.is_main_process)
        if caches.features is not None:
            claim_features(caches.features)
        stores = caches.stores(samples)
        if accelerator.is_main_process:
            for store in stores:
                for path in store.discard_broken_shards():
                    logger.warning(f"{path} was damaged and is removed; what it held is made again.")
    return stores


def _discard_damaged(
    stores: Sequence[TensorStore], accelerator: Accelerator, config: Config, progress: CacheProgress
) -> None:
    """Reads every record, each process its slice, and removes those whose checksum doesn't hold."""
    records = [Record(store, key) for store in stores for key in sorted(store.keys())]
    mine = records[accelerator.process_index :: accelerator.num_processes]
    intact = progress.track(
        ordered_map(Record.intact, mine, config.max_workers), "Checking what is cached", total=len(mine)
    )
    damaged = [record for record, is_intact in zip(mine, intact, strict=True) if not is_intact]
    everyones: list[Record] = gather_object(damaged)
    if accelerator.is_main_process and everyones:
        logger.warning(f"{len(everyones)} cached records were damaged and are made again.")
        for store in stores:
            store.discard(record.key for record in everyones if record.store == store)
    accelerator.wait_for_everyone()
    for store in stores:
        store.reopen()


def _find_gaps(caches: Caches, samples: Sequence[Sample], stores: Iterable[TensorStore]) -> list[_Gap]:
    """Samples of which something is missing, by bucket; each record once, however many samples share it."""
    there = {store: store.keys() for store in stores}
    wanted: set[Record] = set()

    def missing(record: Record) -> Record | None:
        if record in wanted or record.key in there[record.store]:
            return None
        wanted.add(record)
        return record

    gaps = []
    for sample in samples:
        features = None if caches.features is None else missing(caches.features.record(sample))
        gap = _Gap(sample, missing(caches.records.latents(sample)), features)
        if gap.latents is not None or gap.features is not None:
            gaps.append(gap)
    return sorted(gaps, key=lambda gap: (*gap.group, gap.sample.id))


def _missing_prompts(records: Records, prompts: Sequence[str]) -> list[str]:
    there = records.text.keys()
    return [prompt for prompt in prompts if records.prompt(prompt).key not in there]


def _fill_gaps(
    gaps: Sequence[_Gap],
    caches: Caches,
    samples: Sequence[Sample],
    foundation: Encoder,
    config: Config,
    progress: CacheProgress,
) -> None:
    """Makes latents and features in one pass over the samples."""
    accelerator, features, teacher = foundation.accelerator, caches.features, None
    if features is not None and any(gap.features is not None for gap in gaps):
        _require_room(features, gaps, accelerator, progress)
        teacher = FeatureEncoder(features, foundation, samples)
    mine = gaps[accelerator.process_index :: accelerator.num_processes]
    by_group = (list(group) for _, group in groupby(mine, key=lambda gap: gap.group))
    batches = (batch for group in by_group for batch in _chunks(group, config.vae_batch_size))
    read = ordered_map(partial(_with_pixels, features), batches, config.max_workers)
    encoded = (_encoded(batch, pixels, foundation, config, caches, teacher) for batch, pixels in read)
    advance = progress.task("Encoding samples", len(gaps), unit="images")
    with _Writers(accelerator.process_index) as writers:
        # The disk works while the device encodes the next batch.
        for count in ordered_map(writers.write, encoded, 1):
            advance(count * accelerator.num_processes)  # the others are about as fast
    foundation.unload_vae()
    del teacher, encoded, read
    clear_device_cache(garbage_collection=True)


def _require_room(
    features: FeatureCache, gaps: Sequence[_Gap], accelerator: Accelerator, progress: CacheProgress
) -> None:
    """Says what the features take, and refuses to begin what the disk can't hold."""
    samples = [gap.sample for gap in gaps if gap.features is not None]
    needed = sum(on_disk(features.stored_size(sample)) for sample in samples)
    free = shutil.disk_usage(features.store.folder).free
    progress.say(
        f"{len(samples)} samples need teacher features: {told_bytes(needed / len(samples))} each, "
        f"{told_bytes(needed)} in all."
    )
    if needed > free:
        key = features.options.key
        raise DatasetError(
            f"cache_dir: the teacher's features need {told_bytes(needed)}, and {features.store.folder} has "
            f"{told_bytes(free)} free. Free space, set another folder, lower {key('encoder_image_size')}, set "
            f"{key('feature_cache_dtype')} to int8 or {key('feature_cache_dim')} to 128, or turn "
            f"{key('feature_cache')} off."
        )


def told_bytes(size: float) -> str:
    """A number of bytes for people to read."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"


def _with_pixels(features: FeatureCache | None, batch: Sequence[_Gap]) -> tuple[Sequence[_Gap], Tensor]:
    """The batch with its pixels `(B, T, 3, H, W)`: all frames for the VAE, or only the teacher's."""
    frames = None
    if batch[0].latents is None and features is not None:
        frames = features.frames[batch[0].sample.latent_frames]
    return batch, torch.stack([gap.sample.pixels(frames) for gap in batch])


Made = list[tuple[Record, dict[str, Tensor]]]


def _encoded(
    batch: Sequence[_Gap],
    pixels: Tensor,
    foundation: Encoder,
    config: Config,
    caches: Caches,
    teacher: FeatureEncoder | None,
) -> tuple[int, Made]:
    """What is to be written for a batch, and how many samples that is."""
    made: Made = []
    features = caches.features
    if batch[0].latents is not None:
        with torch.no_grad():
            latents = foundation.encode_pixels(pixels).cpu()
        for gap, latent in zip(batch, latents, strict=True):
            if not latent.isfinite().all():
                raise DatasetError(
                    f"{gap.sample.path}: the VAE gives latents that are not finite. Remove the file; if it is so with "
                    f"others, the VAE in {config.pretrained_model_name_or_path!r} is damaged: get it again."
                )
            assert gap.latents is not None
            try:
                made.append((gap.latents, caches.records.packed_latents(latent)))
            except ValueError as error:
                raise DatasetError(f"{gap.sample.path}: {error}. Set vae_cache_dtype to bf16 or fp32.") from error
    if batch[0].features is not None:
        assert features is not None and teacher is not None
        if batch[0].latents is not None:
            pixels = pixels[:, features.frames[batch[0].sample.latent_frames]]
        try:
            packed = teacher.encode(pixels, batch[0].sample.bucket)
        except ValueError as error:
            raise DatasetError(f"{batch[0].sample.path}, or one encoded with it: {error}.") from error
        for gap, part in zip(batch, packed, strict=True):
            assert gap.features is not None
            made.append((gap.features, part))
    return len(batch), made


class _Writers:
    """Writes records to their stores, each opened when it is first needed."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._writers: dict[TensorStore, StoreWriter] = {}
        self._open = ExitStack()

    def write(self, made: tuple[int, Made]) -> int:
        """Writes a batch, a transaction a store; returns how many samples it was."""
        count, records = made
        by_store: dict[TensorStore, dict[str, dict[str, Tensor]]] = {}
        for record, tensors in records:
            by_store.setdefault(record.store, {})[record.key] = tensors
        for store, batch in by_store.items():
            if store not in self._writers:
                self._writers[store] = self._open.enter_context(store.writer(self._process))
            self._writers[store].write(batch)
        return count

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def _encode_prompts(
    prompts: Sequence[str], records: Records, foundation: Encoder, config: Config, progress: CacheProgress
) -> None:
    accelerator = foundation.accelerator
    mine = prompts[accelerator.process_index :: accelerator.num_processes]
    advance = progress.task("Encoding prompts", len(prompts), unit="prompts")
    with records.text.writer(accelerator.process_index) as writer:
        for batch in _chunks(mine, PROMPT_BATCH_SIZE):
            with torch.no_grad():
                embeddings = foundation.encode_prompts(list(batch))
            for prompt, embedding in zip(batch, embeddings, strict=True):
                if not all(tensor.isfinite().all() for tensor in embedding.values()):
                    raise DatasetError(
                        f"The text encoder gives embeddings that are not finite for the prompt {prompt!r}. Set "
                        f"mixed_precision, which is {config.mixed_precision!r}, to 'bf16' or 'no'; if that does not "
                        f"help, the weights in {config.pretrained_model_name_or_path!r} are damaged: get them again."
                    )
            writer.write({records.prompt(p).key: e for p, e in zip(batch, embeddings, strict=True)})
            advance(len(batch) * accelerator.num_processes)
    foundation.unload_text_encoders()


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))
