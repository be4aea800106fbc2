"""What a run's caches hold, and what disk the rest takes, told before anything is encoded: `cache --dry-run`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from simpletuner.configuration.alignment_shared import CacheType
from simpletuner.configuration.cache_sizes import on_disk
from simpletuner.configuration.config import Config
from simpletuner.configuration.paths import local_path
from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.data.build import EMPTY_PROMPT, Caches, told_bytes
from simpletuner.helpers.data.features import Aligned, FeatureCache, claim_features, features_of_run
from simpletuner.helpers.data.records import Record, Records
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.data.store import TensorStore
from simpletuner.helpers.training.alignment.feature_cache import stored_bytes

SHOWN_DTYPES: tuple[CacheType, ...] = ("bf16", "fp16", "int8")
WHITENED = 128


@dataclass(frozen=True)
class Part:
    """One store: how many records are there and how many are to be made.

    ``size`` is what one takes on disk in bytes, on average; None where only encoding tells.
    """

    kind: str
    folder: Path
    there: int
    missing: int
    size: float | None

    @property
    def needed(self) -> float:
        """Bytes of the records to be made, as far as they are known."""
        return 0.0 if self.size is None else self.missing * self.size


@dataclass(frozen=True)
class Estimate:
    """What ``estimate`` found; ``free`` is the disk's free space in bytes, where the caches are to lie."""

    samples: Sequence[Sample]
    parts: Sequence[Part]
    features: FeatureCache | None
    free: int

    @property
    def needed(self) -> float:
        """Bytes of all that is to be made, as far as they are known."""
        return sum(part.needed for part in self.parts)


def estimate(
    samples: Sequence[Sample],
    foundation: Aligned,
    config: Config,
    *,
    latent_bytes: Callable[[Bucket], int],
    prompt_bytes: int | None,
    more_prompts: Sequence[str] = (),
) -> Estimate:
    """Looks at what the caches of a run hold; nothing is written or encoded.

    Args:
        latent_bytes: what the latents of a sample take; prompt_bytes: the embeddings of a prompt, None if unknown.
        more_prompts: as of ``build_caches``.

    Raises:
        DatasetError: a cache is another model's or can't be read.
        ValueError: an encoder can't be found.
    """
    caches = Caches(Records(config, samples), features_of_run(config, foundation, samples))
    records, features = caches.records, caches.features
    prompts = {EMPTY_PROMPT, *more_prompts, *(sample.caption for sample in samples)}
    latents: dict[TensorStore, list[Sample]] = {}
    for sample in samples:
        latents.setdefault(records.latents(sample).store, []).append(sample)
    parts = [
        _part(
            "latents",
            store,
            map(records.latents, group),
            _mean_on_disk(group, lambda sample: latent_bytes(sample.bucket)),
        )
        for store, group in latents.items()
    ]
    text = [records.prompt(prompt) for prompt in sorted(prompts)]
    size = _size_of_one(text) if prompt_bytes is None else prompt_bytes
    parts.append(_part("prompts", records.text, text, None if size is None else on_disk(size)))
    if features is not None:
        if features.store.shards():
            claim_features(features)  # writes nothing where there are any, and refuses another teacher's
        wanted = [features.record(sample) for sample in samples]
        parts.append(_part("features", features.store, wanted, _mean_on_disk(samples, features.stored_size)))
    return Estimate(samples, parts, features, shutil.disk_usage(_existing(local_path(config.cache_dir))).free)


def feature_sizes(features: FeatureCache, samples: Sequence[Sample]) -> dict[int, dict[CacheType, float]]:
    """Mean bytes on disk of a sample's features by width and number format: as asked, and what else can be had."""
    widths = {features.facts.width, features.width, min(WHITENED, features.facts.width)}
    dtypes = dict.fromkeys((*SHOWN_DTYPES, features.options.feature_cache_dtype))

    def mean(width: int, dtype: CacheType) -> float:
        return _mean_on_disk(samples, lambda sample: stored_bytes(features.grid(sample), width, dtype))

    return {width: {dtype: mean(width, dtype) for dtype in dtypes} for width in sorted(widths, reverse=True)}


def parts_table(found: Estimate, samples: int | None = None) -> Table:
    """What is there and to be made, and the disk that it takes; with a column for so many ``samples``, if given."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Cache", no_wrap=True)
    for heading in ("There", "To make", "Each", "Disk needed"):
        table.add_column(heading, justify="right", no_wrap=True)
    if samples is not None:
        table.add_column(f"{samples:,} samples", justify="right", no_wrap=True)
    table.add_column("Folder", overflow="fold")
    for part in found.parts:
        cells = [part.kind, f"{part.there:,}", f"{part.missing:,}"]
        cells += ["known once encoded", "?"] if part.size is None else [told_bytes(part.size), told_bytes(part.needed)]
        if samples is not None:
            count = part.there + part.missing
            share = count if part.kind == "prompts" else samples * count / len(found.samples)
            cells.append("?" if part.size is None else told_bytes(share * part.size))
        table.add_row(*cells, str(part.folder))
    return table


def formats_table(features: FeatureCache, samples: Sequence[Sample], count: int) -> Group:
    """What the features of ``count`` samples take in each number format and width; the one that is set has a star."""
    sizes, options = feature_sizes(features, samples), features.options
    title = (
        f"Teacher features of {count:,} samples by {options.key('feature_cache_dtype')} and "
        f"{options.key('feature_cache_dim')}; what is set has a star."
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Format", no_wrap=True)
    for width in sizes:
        table.add_column(f"{width} wide", justify="right", no_wrap=True)
    for dtype in next(iter(sizes.values())):
        cells = []
        for width, by_dtype in sizes.items():
            star = "*" if (width, dtype) == (features.width, options.feature_cache_dtype) else " "
            cells.append(f"{told_bytes(by_dtype[dtype])} each, {told_bytes(count * by_dtype[dtype])} {star}")
        table.add_row(dtype, *cells)
    return Group(title, table)


def _part(kind: str, store: TensorStore, records: Iterable[Record], size: float | None) -> Part:
    wanted = {record.key for record in records}
    there = len(wanted & store.keys())
    return Part(kind, store.folder, there, len(wanted) - there, size)


def _mean_on_disk(samples: Sequence[Sample], size: Callable[[Sample], int]) -> float:
    """The mean over the samples; those of one shape have one size."""
    shapes: Mapping[tuple[Bucket, int], Sample] = {(sample.bucket, sample.latent_frames): sample for sample in samples}
    counts = Counter((sample.bucket, sample.latent_frames) for sample in samples)
    return sum(count * on_disk(size(shapes[shape])) for shape, count in counts.items()) / len(samples)


def _size_of_one(records: Iterable[Record]) -> int | None:
    """The size of a record that is there; None where none is."""
    for record in records:
        if record.intact():
            return sum(tensor.numel() * tensor.element_size() for tensor in record.read().values())
    return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
