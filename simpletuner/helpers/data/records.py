"""Where the cached tensors of a sample or a prompt lie: the store and the key, made of all that changes the value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simpletuner.configuration.config import Config
from simpletuner.configuration.paths import local_path
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.data.store import TensorStore

_LAYOUT = 2
"""Raised when the way of making records changes, so that older ones are not used."""


LATENT_FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Record:
    """The cached tensors of one thing, present or not."""

    store: TensorStore
    key: str

    def intact(self) -> bool:
        """Whether it can be read."""
        return self.store.intact(self.key)

    def read(self) -> dict[str, Tensor]:
        """Raises ``DatasetError`` where it is missing or damaged."""
        return self.store.read(self.key)


class Records:
    """The latents and text embeddings of one run.

    They lie in a folder for each model that made them, so that runs with several models share a `cache_dir`.
    """

    def __init__(self, config: Config, samples: Sequence[Sample]) -> None:
        folder = local_path(config.pretrained_model_name_or_path)
        model = {"family": config.model_family, "model": config.pretrained_model_name_or_path}
        self._autoencoder: dict[str, Any] = model | {"files": _states(folder, "vae/**/*")}
        self._latent_format = config.vae_cache_dtype
        if self._latent_format != "fp32":  # which latents were kept in before there was a choice
            self._autoencoder["dtype"] = self._latent_format
        files = _states(folder, "text_encoder*/**/*", "tokenizer*/**/*")
        self._text_model: dict[str, Any] = model | {"precision": config.mixed_precision, "files": files}
        if folder.is_dir() and not any(folder.glob("text_encoder*")):
            # A class-conditional model: captions are labels, numbered among all of them.
            self._text_model["labels"] = hash_key(sorted({sample.caption for sample in samples}))
        self._latent_name, self._text_name = (
            f"{config.model_family}-{hash_key(identity)[:12]}" for identity in (self._autoencoder, self._text_model)
        )
        self.text = TensorStore(local_path(config.cache_dir) / "text" / self._text_name)

    def latents(self, sample: Sample) -> Record:
        """The record of ``latents``: depends on the file's content, its cut, the VAE, and the number format."""
        return Record(TensorStore(sample.latent_folder / self._latent_name), hash_key("latents", sample.cut))

    def packed_latents(self, latents: Tensor) -> dict[str, Tensor]:
        """What a record of ``latents`` keeps of finite ones, in the number format of `vae_cache_dtype`.

        Raises ``ValueError`` where one is too large for it.
        """
        kept = latents.to(LATENT_FORMATS[self._latent_format])
        if not kept.isfinite().all():
            raise ValueError(f"latents up to {latents.abs().max():.3g} are too large for {self._latent_format}")
        return {"latents": kept}

    def prompt(self, prompt: str) -> Record:
        """The record of a prompt's embeddings: depends on the prompt, the text encoders and their format."""
        return Record(self.text, hash_key("text", prompt))

    def latent_stores(self, samples: Sequence[Sample]) -> list[TensorStore]:
        """The stores of the samples' latents."""
        return [TensorStore(folder / self._latent_name) for folder in sorted({s.latent_folder for s in samples})]

    def claim(self, samples: Sequence[Sample], *, replace: bool = False) -> None:
        """Makes the stores, or checks that they are what their folders say; `replace` throws away those that aren't.

        Raises ``DatasetError`` for a store whose manifest is damaged or says something else.
        """
        claims = [(store, "latents", self._autoencoder) for store in self.latent_stores(samples)]
        for store, kind, identity in (*claims, (self.text, "text", self._text_model)):
            try:
                store.claim(kind, identity)
            except DatasetError:
                if not replace:
                    raise
                store.remove()
                store.claim(kind, identity)


def hash_key(*parts: object) -> str:
    """A name made of anything that JSON can hold."""
    return blake2b(json.dumps([_LAYOUT, *parts]).encode(), digest_size=20).hexdigest()


def _states(folder: Path, *patterns: str) -> str:
    """A hash of names, sizes and times of change of a local model's files (of none for a model on the hub).

    Where a component is absent, as in a model of pixels or of classes, the model's own configuration takes its place.
    """
    for chosen in (patterns, ("model_index.json", "transformer/config.json")):
        files = sorted(path for pattern in chosen for path in folder.glob(pattern) if path.is_file())
        if files:
            break
    return hash_key(
        [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    )
