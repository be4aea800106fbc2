"""Features of images for measuring: of the Inception network through torch-fidelity, or of any encoder that we load."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simpletuner.configuration.paths import local_path
from simpletuner.evaluation.distribution import Gaussian, GaussianAccumulator, Reference, fidelity_module
from simpletuner.evaluation.pictures import Picture, batches_of
from simpletuner.helpers.training.alignment.encoders import describe_encoder
from simpletuner.helpers.training.alignment.teachers import make_teacher

logger = logging.getLogger(__name__)

INCEPTION = "inception"
SPATIAL_CHANNELS = 7  # 17 × 17 × 7 = 2023 features, as the evaluator of arXiv 2105.05233 has them
ENCODER_SIDE = 224  # pixels at which an encoder sees an image, unless it was trained at fewer
BATCH_SIZE = 32
KEPT_ROWS = 10_000  # of the reference, for what compares images with images


class Progress(Protocol):
    """Shows how far a task has come."""

    def task(self, description: str, total: int, unit: str) -> Callable[[int], None]:
        """Starts a task of `total` items; call what it returns with the number of items done since."""
        ...


class Extractor(Protocol):
    """Makes features `(b, d)`, fp32 on the CPU, by name of images `(b, 3, H, W)`, uint8."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the features depend on besides the images, as JSON."""
        ...

    def __call__(self, images: Tensor) -> dict[str, Tensor]: ...


def make_extractor(name: str, weights: str | None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor that `evaluation_features` names; `weights` are the Inception network's.

    Raises:
        ValueError: torch-fidelity isn't installed, the name means no encoder, or the weights can't be had.
    """
    fidelity_module("version")
    return InceptionFeatures(weights, device) if name == INCEPTION else EncoderFeatures(name, device)


class InceptionFeatures:
    """The Inception network of FID: TensorFlow's weights of 2015 in torch-fidelity's port, with its own resizing.

    Features are `pool` (n, 2048) for FID, `spatial` (n, 2023) for sFID (arXiv 2103.03841), and `logits` (n, 1008)
    without the bias, as the Inception score takes them.

    Args:
        weights: a local file; None takes the library's own download.

    Raises:
        ValueError: the weights can't be had, or are something else.
    """

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        file = inception_weights(weights)
        kind = fidelity_module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        try:
            torch.load(file, map_location="cpu", weights_only=True)  # the library unpickles whatever the file holds
            network = kind(INCEPTION, ["2048", "logits_unbiased"], str(file))
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"evaluation_inception_weights: {str(file)!r} holds no weights of torch-fidelity's Inception network "
                f"({type(error).__name__}: {reason}). Get {_address()} again."
            ) from error
        self._network = network.to(device)
        self._device = torch.device(device)
        self._weights = _file_hash(file)
        self._spatial = torch.zeros(0)
        # TensorFlow's mixed_6/conv, after its batch norm and ReLU.
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    @property
    def identity(self) -> dict[str, Any]:
        return {"features": INCEPTION, "weights": self._weights}

    def _keep(self, module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, enabled=False):
            pool, logits = self._network(images.to(self._device))
        features = {"pool": pool, "spatial": self._spatial, "logits": logits}
        return {name: rows.float().cpu() for name, rows in features.items()}


class EncoderFeatures:
    """An encoder's patch tokens, averaged over the image: `pool` (n, D).

    Images are seen at the area of 224 × 224 pixels, or at the encoder's own size where that is smaller. Tokens of
    efficientnet_lite0 are taken as they are: standardised over some data, distances would depend on that data.

    Args:
        name: as of `encoders.load_encoder`.

    Raises:
        ValueError: the name means no encoder, or its weights can't be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self._facts = describe_encoder(name)
        self._side = min(ENCODER_SIDE, self._facts.native_size) // self._facts.patch * self._facts.patch
        self._teacher = make_teacher(name, image_size=self._side, device=device, dtype=torch.float32)
        if self._teacher.needs_statistics:
            width = self._teacher.width
            self._teacher.load_state_dict({"channel_mean": torch.zeros(width), "channel_std": torch.ones(width)})

    @property
    def identity(self) -> dict[str, Any]:
        return {"features": asdict(self._facts), "side": self._side}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        tokens, _ = self._teacher.encode(images.float() / 255)
        return {"pool": tokens[:, 0].mean(dim=1).cpu()}


def inception_weights(option: str | None) -> Path:
    """The weights' file: `option`, or the library's own download, which is kept where torch keeps such files.

    Raises:
        ValueError: there is no such file, or it can't be downloaded.
    """
    if option is not None:
        file = local_path(option)
        if not file.is_file():
            raise ValueError(
                f"evaluation_inception_weights: there is no file {str(file)!r}. Get {_address()}, or set "
                "evaluation_features to another encoder."
            )
        return file
    file = Path(torch.hub.get_dir(), "checkpoints", Path(_address()).name)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_address(), str(file), progress=False)
        except OSError as error:
            raise ValueError(
                f"The weights of the Inception network can't be downloaded ({error}). Get {_address()} elsewhere and "
                f"name it in evaluation_inception_weights, or put it at {file}; or set evaluation_features to an "
                "encoder that is here, whose distance is not called FID."
            ) from error
    return file


def _address() -> str:
    return fidelity_module("feature_extractor_inceptionv3").URL_INCEPTION_V3


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def extract(
    pictures: Sequence[Picture], extractor: Extractor, progress: Progress, *, workers: int = 0
) -> dict[str, Tensor]:
    """Features `(n, d)` by name of all pictures, in their order.

    Raises:
        ValueError: a feature is not finite.
    """
    advance = progress.task("Measuring samples", len(pictures), "images")
    rows: dict[str, Tensor] = {}
    for indices, images in batches_of(pictures, BATCH_SIZE, workers):
        for name, part in extractor(images).items():
            if name not in rows:
                rows[name] = torch.empty(len(pictures), part.shape[1])
            rows[name][indices] = part
        advance(len(indices))
    return rows


def reference_features(
    pictures: Sequence[Picture], extractor: Extractor, folder: Path, progress: Progress, *, workers: int = 0
) -> Reference:
    """Statistics of all pictures and the features of up to 10,000 of them, kept in `folder` and read from there.

    The file's name is a hash of all that decides the numbers: images, their cut, and the extractor.

    Raises:
        ValueError: fewer than two pictures, one that can't be read, or a feature that is not finite.
    """
    keys = [picture.key for picture in pictures]
    identity = json.dumps([extractor.identity, KEPT_ROWS, keys], sort_keys=True)
    file = folder / f"{blake2b(identity.encode(), digest_size=16).hexdigest()}.safetensors"
    if file.is_file():
        try:
            return _read_reference(file)
        except (OSError, KeyError, SafetensorError) as error:
            logger.warning(f"{file} is damaged ({error}); the reference is measured again.")
    reference = _measure_reference(pictures, extractor, progress, workers)
    _write_reference(file, reference)
    return reference


def _measure_reference(
    pictures: Sequence[Picture], extractor: Extractor, progress: Progress, workers: int
) -> Reference:
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    kept = set(order[:KEPT_ROWS].tolist())
    advance = progress.task("Measuring the reference", len(pictures), "images")
    gaussians: dict[str, GaussianAccumulator] = {}
    rows = []
    for indices, images in batches_of(pictures, BATCH_SIZE, workers):
        features = extractor(images)
        for name in features.keys() - {"logits"}:
            gaussians.setdefault(name, GaussianAccumulator()).add(features[name])
        rows += [row for index, row in zip(indices, features["pool"], strict=True) if index in kept]
        advance(len(indices))
    fitted = {name: accumulator.result() for name, accumulator in sorted(gaussians.items())}
    return Reference(fitted, torch.stack(rows))


def _write_reference(file: Path, reference: Reference) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"rows": reference.rows}
    for name, gaussian in reference.gaussians.items():
        tensors |= {f"{name}.mean": gaussian.mean, f"{name}.covariance": gaussian.covariance}
    beside = file.with_suffix(".partial")
    save_file(tensors, beside, {name: str(gaussian.count) for name, gaussian in reference.gaussians.items()})
    beside.replace(file)


def _read_reference(file: Path) -> Reference:
    with safe_open(file, "pt") as content:
        gaussians = {
            name: Gaussian(int(count), content.get_tensor(f"{name}.mean"), content.get_tensor(f"{name}.covariance"))
            for name, count in content.metadata().items()
            if name != "format"
        }
        return Reference(gaussians, content.get_tensor("rows"))
