"""Builds the caches of a folder in a process of its own: `python -m tests.helpers.data.build_alone '{...}'`.

The JSON gives `data` (the folder), `options` (of the configuration) and `die_at`, the VAE batch at which the process
kills itself as `kill -9` would (null: never). Prints how many images and prompts it encoded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import avg_pool2d

from simpletuner.configuration.config import Config
from simpletuner.helpers.data.build import build_caches, cache_progress
from simpletuner.helpers.data.scan import find_samples
from simpletuner.helpers.models.registry import FAMILIES
from tests.helpers.data.files import make_entry


class CountingEncoder:
    """Averages over cells of 8 pixels, counts what it encodes, and may die at it. It starts much faster than a VAE."""

    def __init__(self, die_at: int | None) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.die_at = die_at
        self.batches = self.images = self.prompts = 0

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        if self.batches == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches += 1
        self.images += len(pixels)
        return avg_pool2d(pixels[:, 0], 8)

    def encode_prompts(self, prompts: list[str]) -> list[dict[str, Tensor]]:
        self.prompts += len(prompts)
        return [{"letters": torch.tensor([ord(letter) for letter in prompt])} for prompt in prompts]

    def observe_captions(self, captions: Iterable[str]) -> None:
        self.captions = set(captions)

    def unload_vae(self) -> None:
        self.batches = 0

    def unload_text_encoders(self) -> None:
        self.captions = set()


def main(order: str) -> None:
    wanted = json.loads(order)
    config = Config(**wanted["options"])
    encoder = CountingEncoder(wanted["die_at"])
    samples = find_samples([make_entry(wanted["data"])], config, FAMILIES["sd1x"], encoder.accelerator)
    with cache_progress(enabled=False) as progress:
        build_caches(samples, encoder, config, progress)
    print(json.dumps({"images": encoder.images, "prompts": encoder.prompts}))


if __name__ == "__main__":
    main(sys.argv[1])
