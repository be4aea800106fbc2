"""Where the cached tensors of a sample or a prompt lie: the store and the key, made of all that changes the value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from hashlib import blake2b
from pathlib import Path

from torch import Tensor

from simpletuner.configuration.config import Config
from simpletuner.configuration.paths import local_path
from simpletuner.helpers.data.cache import TensorStore
from simpletuner.helpers.data.samples import Sample

_LAYOUT = 1
"""Raised when the way of making records changes, so that older ones are not used."""


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

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Raises ``DatasetError`` where the disk refuses."""
        self.store.write(self.key, tensors)


class Records:
    """The records of one run."""

    def __init__(self, config: Config, samples: Sequence[Sample]) -> None:
        folder = local_path(config.pretrained_model_name_or_path)
        model: list[object] = [config.model_family, config.pretrained_model_name_or_path]
        self._autoencoder = [*model, _states(folder, "vae/**/*")]
        self._text_model = [*model, config.mixed_precision, _states(folder, "text_encoder*/**/*", "tokenizer*/**/*")]
        if folder.is_dir() and not any(folder.glob("text_encoder*")):
            # A class-conditional model: captions are labels, numbered among all of them.
            self._text_model.append(sorted({sample.caption for sample in samples}))
        self.text = TensorStore(local_path(config.cache_dir) / "text")

    def latents(self, sample: Sample) -> Record:
        """The record of ``latents``: depends on the file's content, its cut, and the VAE."""
        cut = (sample.digest, astuple(sample.bucket), astuple(sample.placement), sample.frame_stride)
        return Record(TensorStore(sample.latent_folder), _key("latents", cut, self._autoencoder))

    def prompt(self, prompt: str) -> Record:
        """The record of a prompt's embeddings: depends on the prompt, the text encoders and their format."""
        return Record(self.text, _key("text", prompt, self._text_model))


def _states(folder: Path, *patterns: str) -> list[tuple[str, int, int]]:
    """Size and time of change of a local model's files (none for a model on the hub).

    Where a component is absent, as in a model of pixels or of classes, the model's own configuration takes its place.
    """
    for chosen in (patterns, ("model_index.json", "transformer/config.json")):
        files = sorted(path for pattern in chosen for path in folder.glob(pattern) if path.is_file())
        if files:
            break
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _key(*parts: object) -> str:
    return blake2b(json.dumps([_LAYOUT, *parts]).encode(), digest_size=20).hexdigest()
