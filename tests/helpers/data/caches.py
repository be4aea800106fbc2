"""Building caches in tests, watching what is encoded for them, and damaging them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simpletuner.helpers.data.build import Caches, build_caches
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.data.records import Record
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.models.common import ModelFoundation


def build(samples: Sequence[Sample], foundation: ModelFoundation, **how: Any) -> Caches:
    """`build_caches` without a word."""
    with CacheProgress(enabled=False) as progress:
        return build_caches(samples, foundation, foundation.config, progress, **how)


class Watch:
    """Counts what a foundation encodes, and may end the process at a certain place.

    Args:
        end: the VAE's batch, counted from 0, at which to end; or "last": when all prompts are written.
        how: the signal.
    """

    def __init__(self, foundation: ModelFoundation, end: int | str | None = None, how: int = signal.SIGKILL) -> None:
        self.images = self.prompts = self.batches = 0
        encode_pixels, encode_prompts = foundation.encode_pixels, foundation.encode_prompts
        unload_text_encoders = foundation.unload_text_encoders

        def pixels_encoded(pixels: Tensor) -> Tensor:
            if self.batches == end:
                os.kill(os.getpid(), how)
            self.batches += 1
            self.images += len(pixels)
            return encode_pixels(pixels)

        def prompts_encoded(prompts: list[str]) -> list[dict[str, Tensor]]:
            self.prompts += len(prompts)
            return encode_prompts(prompts)

        def text_encoders_unloaded() -> None:
            unload_text_encoders()
            if end == "last":
                os.kill(os.getpid(), how)

        foundation.encode_pixels = pixels_encoded  # type: ignore[method-assign]
        foundation.encode_prompts = prompts_encoded  # type: ignore[method-assign]
        foundation.unload_text_encoders = text_encoders_unloaded  # type: ignore[method-assign]


def contents(folder: Path) -> dict[Path, bytes]:
    """Every shard below a folder as it is on disk: equal as long as nothing is written."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.mdb"))}


def everything(caches: Caches, samples: Sequence[Sample]) -> dict[str, dict[str, Tensor]]:
    """All records of all stores; fails at a damaged one."""
    stores = caches.stores(samples)
    return {f"{store.manifest()['kind']} {key}": store.read(key) for store in stores for key in sorted(store.keys())}


def damage(record: Record) -> None:
    """Flips a bit of the largest tensor of a record, where it lies in its shard."""
    tensor = max(record.read().values(), key=Tensor.numel)
    value = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    spoilt = bytes([value[0] ^ 1]) + value[1:]
    for shard in record.store.shards():
        data = shard.read_bytes()
        if value in data:  # also where LMDB left a copy in a page that isn't used any more
            with shard.open("r+b") as file:
                file.write(data.replace(value, spoilt))
    assert not record.intact()
