"""Cached samples as training reads them, and the endless stream of batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simpletuner.configuration.config import Config
from simpletuner.helpers.data.build import EMPTY_PROMPT
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.features import FeatureCache
from simpletuner.helpers.data.records import Records
from simpletuner.helpers.data.sampler import BucketBatchSampler, Draw
from simpletuner.helpers.data.samples import Sample


class TrainingDataset(Dataset[dict[str, Any]]):
    """Cached latents and text embeddings, with cached features or real pixels only where a teacher is asked.

    Args:
        frame_indices: from a number of latent frames to the pixel frames that the teacher sees, ascending (a
            foundation's ``frame_indices``); None gives no pixels.
        features: where the teacher's features are cached; None gives none.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: Config,
        *,
        frame_indices: Callable[[int], Sequence[int]] | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        self.samples = samples
        # Asked now, so that no model has to travel to the processes that load.
        lengths = {sample.latent_frames for sample in samples}
        self._frames = None if frame_indices is None else {length: list(frame_indices(length)) for length in lengths}
        self._records = Records(config, samples)
        self._features = features
        self._dropout = config.caption_dropout_probability
        self._seed = config.seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """One sample, without a batch dimension.

        Returns ``latents`` ``(C, h, w)`` or ``(C, t, h, w)``, ``text`` (tensors by name), ``caption`` (empty where
        dropped), ``sample_id``, ``original_size``, ``crop`` and ``target_size`` (height, width or top, left);
        if asked for ``pixels`` ``(T, 3, H, W)`` in [0, 1], exactly those that became the latents, or ``features``
        (as they are packed) with ``feature_grid``.

        Raises ``DatasetError`` for a cache record that is missing or damaged, or a file that broke.
        """
        sample = self.samples[draw.sample]
        dropped = drops_caption(self._dropout, self._seed, draw.epoch, sample.id)
        caption = EMPTY_PROMPT if dropped else sample.caption
        item = {
            "latents": self._records.latents(sample).read()["latents"],
            "text": self._records.prompt(caption).read(),
            "caption": caption,
            "sample_id": sample.id,
            "original_size": torch.tensor([sample.height, sample.width]),
            "crop": torch.tensor(sample.placement.offset),
            "target_size": torch.tensor([sample.bucket.height, sample.bucket.width]),
        }
        if self._frames is not None:
            item["pixels"] = sample.pixels(self._frames[sample.latent_frames])
        if self._features is not None:
            item["features"] = self._features.record(sample).read()
            item["feature_grid"] = self._features.grid(sample)
        return item


def drops_caption(probability: float, seed: int, epoch: int, sample_id: str) -> bool:
    """Whether a sample is trained with the empty prompt in this epoch; the same on every rank and after a resume."""
    digest = blake2b(f"{seed}/{epoch}/{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < probability * 2**64


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples of one bucket; ``text`` stays a list, because only the foundation knows how it is padded.

    Returns ``latents``, ``pixels`` and ``features`` (if there are any; packed, with their one ``feature_grid``),
    ``original_sizes``, ``crops``, ``target_sizes`` with the batch first, and the lists ``sample_ids``, ``captions``
    and ``text``.
    """

    def stacked(name: str) -> Tensor:
        return torch.stack([item[name] for item in items])

    batch: dict[str, Any] = {
        "latents": stacked("latents"),
        "text": [item["text"] for item in items],
        "captions": [item["caption"] for item in items],
        "sample_ids": [item["sample_id"] for item in items],
        "original_sizes": stacked("original_size"),
        "crops": stacked("crop"),
        "target_sizes": stacked("target_size"),
    }
    if "pixels" in items[0]:
        batch["pixels"] = stacked("pixels")
    if "features" in items[0]:
        packed = [item["features"] for item in items]
        batch["features"] = {name: torch.stack([part[name] for part in packed]) for name in packed[0]}
        batch["feature_grid"] = items[0]["feature_grid"]
    return batch


def training_batches(
    dataset: TrainingDataset,
    sampler: BucketBatchSampler,
    collate_text: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]],
    *,
    max_workers: int,
    pin_memory: bool = False,
) -> Generator[dict[str, Any]]:
    """Batches without end, epoch after epoch, from where the sampler stands.

    A batch counts as consumed when it is given out, so the sampler's state saved after a step resumes with the next
    batch, however far ``max_workers`` processes (0: none) have fetched ahead. Raises as the data set does.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=max_workers,
        persistent_workers=max_workers > 0,
        worker_init_fn=_leave_interrupts_to_the_main_process,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # of its own: else every epoch draws from the training's random state
    )
    while True:
        epoch = sampler.epoch
        try:
            for batch in loader:
                sampler.advance()
                yield batch | {"text": collate_text(batch["text"])}
        except DatasetError as error:
            raise DatasetError(_own_words(error)) from error
        if sampler.epoch == epoch:
            raise DatasetError(
                f"Epoch {epoch} has {len(sampler)} batches and ended without reaching them from {sampler.position} on: "
                "the checkpoint is of other data. Set another output_dir to start anew."
            )


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    """A terminal sends Ctrl-C to every process; the main one decides, and ends those that load."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _own_words(error: DatasetError) -> str:
    """The message of an error, without the traceback that torch puts before it in a loader process."""
    return str(error).rstrip().splitlines()[-1].removeprefix(f"{DatasetError.__module__}.{DatasetError.__name__}: ")
