"""Token grids: how tokens lie in frames, rows and columns, and how one grid is brought onto another.

Nothing here guesses a grid from a token count; a grid always travels with its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Frames, rows and columns of tokens, which lie row-major in `(frames, height, width)` order.

    Attributes:
        offset: how far down and to the right of a cell's middle its features are centred, in cells; 0 but for UNets,
            whose strided convolutions move them up and to the left.
    """

    frames: int
    height: int
    width: int
    offset: float = 0.0

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(f"A token grid needs at least one frame, row and column; got {self}.")

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        return self.frames * self.tokens_per_frame

    def scaled(self, factor: int) -> TokenGrid:
        """The grid with `factor` times as many rows and columns."""
        return TokenGrid(self.frames, self.height * factor, self.width * factor)

    def __str__(self) -> str:
        return f"{self.frames}×{self.height}×{self.width} (frames×rows×columns)"


def square_grid(tokens: int, *, frames: int = 1) -> TokenGrid:
    """The grid of a square token count.

    Raises:
        ValueError: the count isn't a square, so the grid must be passed.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} tokens make no square, so their grid can't be known: pass grid=TokenGrid(…).")
    return TokenGrid(frames, side, side)


def meeting_grid(student: TokenGrid, teacher: TokenGrid, where: str) -> TokenGrid:
    """The grid on which both sides are compared: "student", "teacher", or the "smaller" of the two."""
    if where == "student":
        return student
    if where == "teacher":
        return teacher
    smaller = student if student.tokens_per_frame <= teacher.tokens_per_frame else teacher
    return replace(smaller, frames=min(student.frames, teacher.frames))


def split_frames(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """`(B, S, D)` or `(B, T, N, D)` -> `(B, T, N, D)`; raises ValueError if the tokens don't fill `grid`."""
    if tokens.ndim == 3 and tokens.shape[1] == grid.tokens:
        return tokens.unflatten(1, (grid.frames, grid.tokens_per_frame))
    if tokens.ndim == 4 and tokens.shape[1:3] == (grid.frames, grid.tokens_per_frame):
        return tokens
    raise ValueError(f"Tokens of shape {tuple(tokens.shape)} don't fill the token grid {grid}: it has {grid.tokens}.")


def to_maps(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """`(B, T, N, D)` -> `(B·T, D, H, W)`."""
    maps = split_frames(tokens, grid).flatten(0, 1).transpose(1, 2)
    return maps.unflatten(2, (grid.height, grid.width))


def to_tokens(maps: Tensor, frames: int) -> Tensor:
    """`(B·T, D, H, W)` -> `(B, T, N, D)`."""
    return maps.flatten(2).transpose(1, 2).unflatten(0, (-1, frames))


def resample_tokens(tokens: Tensor, grid: TokenGrid, target: TokenGrid) -> Tensor:
    """Brings tokens onto another grid: bilinear over rows and columns, linear over frames.

    Every cell is taken to lie where it truly is: pixel centres (`align_corners=False`), moved by the grids' offsets. A
    side that shrinks is antialiased.

    Args:
        tokens: `(B, T, N, D)` on `grid`.

    Returns:
        `(B, T', N', D)` on `target`; `tokens` itself where the grids are equal.
    """
    tokens = split_frames(tokens, grid)
    if grid.frames != target.frames:
        frames = _linear_weights(grid.frames, target.frames, 0.0, 0.0, tokens.device, tokens.dtype)
        tokens = torch.einsum("st,btnd->bsnd", frames, tokens)
    if (grid.height, grid.width, grid.offset) != (target.height, target.width, target.offset):
        rows, columns = (
            _linear_weights(source, wanted, grid.offset, target.offset, tokens.device, tokens.dtype)
            for source, wanted in ((grid.height, target.height), (grid.width, target.width))
        )
        # One after the other: given all three, einsum may multiply the two matrices out first.
        maps = torch.einsum("yh,bthwd->btywd", rows, tokens.unflatten(2, (grid.height, grid.width)))
        tokens = torch.einsum("xw,btywd->btyxd", columns, maps).flatten(2, 3)
    return tokens


@lru_cache(maxsize=256)  # a step then copies nothing to the device
def _linear_weights(
    source: int, target: int, source_offset: float, target_offset: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`(target, source)`: linear interpolation along a side, triangle-filtered where it shrinks."""
    with torch.inference_mode(False):  # what a teacher asked for first serves a student's backward pass too
        scale = source / target
        index = torch.arange(source, dtype=torch.float64)
        centres = (torch.arange(target, dtype=torch.float64) + 0.5 + target_offset) * scale - 0.5 - source_offset
        distance = (centres.clamp(0, source - 1)[:, None] - index[None, :]).abs()
        weights = (1 - distance / max(scale, 1.0)).clamp(min=0)
        return (weights / weights.sum(1, keepdim=True)).to(device, dtype)


def teacher_input_size(
    height: int,
    width: int,
    *,
    patch: int,
    image_size: int | str,
    student_grid: TokenGrid | None = None,
    scale: int = 1,
    native_size: int = 518,
) -> tuple[int, int]:
    """Height and width in pixels at which the teacher sees a sample of `height` × `width` pixels.

    Both are multiples of `patch`, and the aspect ratio is kept as closely as that allows.

    Args:
        image_size: side in pixels of the square with the same area; "auto" gives the teacher `scale` times the rows
            and columns of `student_grid`, so that no token is interpolated (REPA's rule, arXiv 2410.06940), capped at
            the area of `native_size` squared.
    """
    if image_size == "auto":
        if student_grid is None:
            raise ValueError("encoder_image_size 'auto' needs the student's token grid; give a size in pixels.")
        rows, columns = student_grid.height * scale, student_grid.width * scale
        if rows * columns * patch * patch <= native_size * native_size:
            return rows * patch, columns * patch
        side, aspect = float(native_size), rows / columns
    elif isinstance(image_size, int):
        side, aspect = float(image_size), height / width
    else:
        raise ValueError(f"encoder_image_size is {image_size!r}; it must be a whole number of pixels or 'auto'.")
    root = math.sqrt(aspect)
    return _round_to(side * root, patch), _round_to(side / root, patch)


def _round_to(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def pixel_frames_of_latents(latent_frames: int, ratio: int) -> list[int]:
    """The pixel frame that the teacher sees for each latent frame of a causal video VAE.

    Latent frame 0 is pixel frame 0; latent frame k ≥ 1 covers pixel frames `ratio·(k-1)+1 … ratio·k`, of which the
    last is taken.
    """
    return [ratio * k for k in range(latent_frames)]
