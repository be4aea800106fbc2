"""The cache of teacher features: which record holds a sample's tokens, and how they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor

from simpletuner.configuration.alignment import AlignmentOptions, CrepaOptions
from simpletuner.configuration.config import Config
from simpletuner.configuration.paths import local_path
from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.records import Record, hash_key
from simpletuner.helpers.data.samples import Sample, spread_evenly
from simpletuner.helpers.data.store import REBUILD, CacheMismatchError, TensorStore
from simpletuner.helpers.training.alignment.encoders import EncoderFacts, describe_encoder
from simpletuner.helpers.training.alignment.feature_cache import (
    UNSTATED,
    Whitening,
    cache_identity,
    fit_whitening,
    pack,
    stored_bytes,
)
from simpletuner.helpers.training.alignment.geometry import TokenGrid, teacher_input_size
from simpletuner.helpers.training.alignment.teachers import Teacher, make_teacher


class Aligned(Protocol):
    """What the cache of features needs of a model foundation."""

    @property
    def accelerator(self) -> Accelerator: ...
    @property
    def alignment_options(self) -> AlignmentOptions | None: ...
    @property
    def teacher_scale(self) -> int: ...
    @property
    def pixels_per_token(self) -> int: ...
    def sample_grid(self, bucket: Bucket, latent_frames: int) -> TokenGrid: ...
    def frame_indices(self, latent_frames: int) -> list[int]: ...


@dataclass(frozen=True)
class FeatureCache:
    """Teacher features of the samples of a run.

    Attributes:
        frames: the pixel frames that the teacher sees, by the number of latent frames.
        student_grids: by bucket; a teacher of size "auto" follows them. teacher_scale: see `geometry`.
        cell: pixels a side that a teacher's token then covers.
    """

    store: TensorStore
    options: AlignmentOptions
    facts: EncoderFacts
    frames: Mapping[int, Sequence[int]]
    student_grids: Mapping[Bucket, TokenGrid]
    teacher_scale: int
    cell: float

    @property
    def width(self) -> int:
        """D of the cached features."""
        dim = self.options.feature_cache_dim
        return self.facts.width if dim is None else dim

    def size(self, bucket: Bucket) -> tuple[int, int]:
        """Height and width in pixels at which the teacher sees samples of a bucket."""
        return teacher_input_size(
            bucket.height,
            bucket.width,
            patch=self.facts.patch,
            image_size=self.options.encoder_image_size,
            student_grid=self.student_grids[bucket],
            scale=self.teacher_scale,
            native_size=self.facts.native_size,
        )

    def grid(self, sample: Sample) -> TokenGrid:
        """The grid of a sample's features."""
        height, width = self.size(sample.bucket)
        frames = len(self.frames[sample.latent_frames])
        return TokenGrid(frames, height // self.facts.patch, width // self.facts.patch)

    def record(self, sample: Sample) -> Record:
        """The record of a sample's features: depends on the file's content, its cut, and what the teacher sees."""
        key = hash_key("features", sample.cut, self.frames[sample.latent_frames], self.size(sample.bucket))
        return Record(self.store, key)

    def stored_size(self, sample: Sample) -> int:
        """Bytes that a sample's features take."""
        return stored_bytes(self.grid(sample), self.width, self.options.feature_cache_dtype)


def features_of_run(config: Config, foundation: Aligned, samples: Sequence[Sample]) -> FeatureCache | None:
    """The cache that a run reads its teacher's features from; None where it needs none.

    Nothing is built or claimed yet. Raises ``ValueError`` where the encoder can't be found.
    """
    options = foundation.alignment_options
    if options is None or options.is_zero or not options.caches_features:
        return None
    try:
        facts = describe_encoder(options.encoder)
    except ValueError as error:
        raise ValueError(f"{options.key('encoder')}: {error}") from error
    grids = {sample.bucket: foundation.sample_grid(sample.bucket, sample.latent_frames) for sample in samples}
    lengths = {sample.latent_frames for sample in samples}
    return FeatureCache(
        TensorStore(local_path(config.cache_dir) / "features"),
        options,
        facts,
        {length: foundation.frame_indices(length) for length in lengths},
        grids,
        foundation.teacher_scale,
        foundation.pixels_per_token / foundation.teacher_scale,
    )


def claim_features(cache: FeatureCache) -> None:
    """Makes the store for this teacher, or refuses another one's. Raises ``CacheMismatchError``."""
    options = cache.options
    identity = cache_identity(
        cache.facts,
        name=cache.facts.architecture if local_path(options.encoder).exists() else options.encoder,
        image_size=options.encoder_image_size,
        cell=cache.cell,
        dtype=options.feature_cache_dtype,
        dim=options.feature_cache_dim,
        normalized=options.feature_cache_normalized,
    )
    named = {
        "encoder": "encoder",
        "size": "encoder_image_size",
        "dtype": "feature_cache_dtype",
        "width": "feature_cache_dim",
        "normalised": "feature_cache_normalized",
    }
    mends = {name: f"see {options.key(key)}" for name, key in named.items()}
    cache.store.claim("features", identity, mends, unstated=UNSTATED)


class FeatureEncoder:
    """Encodes samples as the cache keeps them; holds the teacher until it is thrown away."""

    def __init__(self, cache: FeatureCache, foundation: Aligned, samples: Sequence[Sample]) -> None:
        """Loads the teacher. What must be fitted to the data first is fitted by the main process, for all.

        Raises:
            DatasetError: a whitening can't be fitted to so few samples.
        """
        self._cache = cache
        options, accelerator = cache.options, foundation.accelerator
        batch = options.encoder_frames_batch_size if isinstance(options, CrepaOptions) else -1
        self._teacher = make_teacher(
            options.encoder,
            image_size=options.encoder_image_size,
            frames_batch_size=batch,
            device=accelerator.device,
        )
        self._whitening: Whitening | None = None
        if cache.facts.needs_statistics or options.feature_cache_dim is not None:
            if accelerator.is_main_process and cache.store.fitted() is None:
                if cache.store.keys():
                    raise CacheMismatchError(
                        f"{cache.store.folder} has lost what its features were fitted to. {REBUILD}"
                    )
                cache.store.keep_fitted(self._fitted(samples))
            accelerator.wait_for_everyone()
            fitted = cache.store.fitted()
            assert fitted is not None
            self._load(fitted)
            accelerator.wait_for_everyone()  # before the main process writes on where the others read

    def encode(self, pixels: Tensor, bucket: Bucket) -> list[dict[str, Tensor]]:
        """The records' content, one for each sample of `pixels` `(B, T, 3, H, W)`, on the CPU.

        Raises ``ValueError`` where a feature isn't finite.
        """
        tokens = self._tokens(pixels, bucket)
        options = self._cache.options
        packed = pack(tokens, options.feature_cache_dtype, normalized=options.feature_cache_normalized)
        parts = {name: part.cpu() for name, part in packed.items()}
        return [{name: part[row] for name, part in parts.items()} for row in range(len(tokens))]

    def _tokens(self, pixels: Tensor, bucket: Bucket) -> Tensor:
        tokens = teacher_tokens(self._teacher, self._cache, pixels, bucket)
        return tokens if self._whitening is None else self._whitening(tokens)

    def _fitted(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        chosen = spread_evenly(samples)
        fitted: dict[str, Tensor] = {}
        if self._teacher.needs_statistics:
            self._teacher.standardise(self._pixels(sample)[None] for sample in chosen)
            fitted |= self._teacher.state_dict()
        dim = self._cache.options.feature_cache_dim
        if dim is not None:
            tokens = (
                teacher_tokens(self._teacher, self._cache, self._pixels(sample)[None], sample.bucket)
                for sample in chosen
            )
            try:
                whitening = fit_whitening(tokens, dim)
            except ValueError as error:
                key = self._cache.options.key("feature_cache_dim")
                raise DatasetError(f"{key}: {error}. Lower it, or remove it.") from error
            fitted |= {"whitening_mean": whitening.mean, "whitening_matrix": whitening.matrix}
        return fitted

    def _load(self, fitted: dict[str, Tensor]) -> None:
        if "whitening_matrix" in fitted:
            self._whitening = Whitening(fitted.pop("whitening_mean"), fitted.pop("whitening_matrix"))
        self._teacher.load_state_dict(fitted)

    def _pixels(self, sample: Sample) -> Tensor:
        return sample.pixels(self._cache.frames[sample.latent_frames])


def teacher_tokens(teacher: Teacher, cache: FeatureCache, pixels: Tensor, bucket: Bucket) -> Tensor:
    """The teacher's tokens `(B, T, N, D)` of samples of one bucket, exactly as they are made in a step."""
    tokens, _ = teacher.encode(pixels, student_grid=cache.student_grids[bucket], scale=cache.teacher_scale)
    return tokens
