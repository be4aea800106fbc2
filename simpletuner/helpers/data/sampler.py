"""Which samples make up which batch: a pure function of seed, epoch and position."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.data.samples import Sample

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A sample by its index, and the epoch it is drawn for (on which caption dropout depends)."""

    sample: int
    epoch: int


class BucketBatchSampler(Sampler[list[Draw]]):
    """Batches of one bucket each, cut alike on every rank.

    A global batch has ``world_size * batch_size`` samples of one bucket; a rank takes its consecutive slice. The last
    batch of a bucket is filled up from the bucket's first samples, so that none is dropped. Iterating gives the rest
    of the current epoch; ``advance`` is called by whoever consumes the batches, because data loaders fetch ahead.
    """

    def __init__(
        self, samples: Sequence[Sample], batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if not samples:
            raise ValueError("There are no samples to draw from.")
        self.batch_size = batch_size
        self.global_batch_size = batch_size * world_size
        self.seed = seed
        self.rank = rank
        self.epoch = 0
        self.position = 0
        pools: dict[Bucket, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            pools[sample.bucket] += repeat(index, 1 + sample.repeats)
        self._pools = [pools[bucket] for bucket in sorted(pools)]
        self._sizes = [[bucket.width, bucket.height, bucket.frames, len(pools[bucket])] for bucket in sorted(pools)]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(pool) // self.global_batch_size) for pool in self._pools)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, start = self.epoch, self.rank * self.batch_size
        for batch in self.global_batches(epoch)[self.position :]:
            yield [Draw(index, epoch) for index in batch[start : start + self.batch_size]]

    def global_batches(self, epoch: int) -> list[list[int]]:
        """The indices of every global batch of an epoch, in order, the same on all ranks."""
        random = np.random.default_rng((self.seed, epoch))
        batches = list(chain.from_iterable(self._cut(random.permutation(pool).tolist()) for pool in self._pools))
        return [batches[index] for index in random.permutation(len(batches))]

    def advance(self) -> None:
        """Counts one batch as consumed."""
        self.position += 1
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position in batches, with what the position depends on."""
        return {"epoch": self.epoch, "position": self.position} | self._cut_by()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batches consumed so far; where they were cut differently, from the epoch's start."""
        self.epoch, self.position = state["epoch"], state["position"]
        changed = [name for name, value in self._cut_by().items() if state.get(name) != value]
        if changed:
            self.position = 0
            logger.warning(
                f"The checkpoint's epoch {self.epoch} was drawn with another {' and '.join(changed)}: it starts anew."
            )

    def _cut_by(self) -> dict[str, Any]:
        return {"seed": self.seed, "global_batch_size": self.global_batch_size, "samples_per_bucket": self._sizes}

    def _cut(self, pool: list[int]) -> Iterator[list[int]]:
        size = self.global_batch_size
        return (list(islice(cycle(pool[first:] + pool), size)) for first in range(0, len(pool), size))
