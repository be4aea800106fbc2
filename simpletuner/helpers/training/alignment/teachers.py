"""Teachers: frozen vision encoders with their preprocessing, which turn pixels into patch tokens on a grid."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from simpletuner.helpers.training.alignment.encoders import EfficientNetLite0, Encoder, load_encoder
from simpletuner.helpers.training.alignment.geometry import TokenGrid, teacher_input_size


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
