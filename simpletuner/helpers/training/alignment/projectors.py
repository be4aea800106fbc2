"""Projectors: the trained heads from the student's width to the teacher's.

All run in fp32, whatever the model runs in, and take tokens `(B, T, N, D)`. Those that look at neighbouring tokens are
convolutions on the token grid and are told the grid; any other module that maps `(..., D)` works too.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from simpletuner.helpers.training.alignment.geometry import TokenGrid, to_maps, to_tokens

ProjectorName = Literal["linear", "mlp", "conv", "conv_gn"]


class GridProjector(nn.Module):
    """A projector that works on maps `(B·T, D, H, W)` of each frame's tokens."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """`(B, T, N, D)` on `grid` -> `(B, T, N, D_teacher)`."""
        return to_tokens(self.layers(to_maps(tokens, grid)), grid.frames)


def make_projector(
    kind: ProjectorName, student_width: int, teacher_width: int, *, width: int = 2048, kernel_size: int = 3
) -> nn.Module:
    """Builds a projector in fp32, with Xavier weights and zero biases.

    Args:
        kind: "linear": LayerNorm and Linear · "mlp": Linear-SiLU-Linear-SiLU-Linear of `width` (REPA, 2410.06940) ·
            "conv": a `kernel_size`² convolution (iREPA, 2512.10794) · "conv_gn": 1×1 convolution without bias,
            GroupNorm(32), GELU (the SD-1.5 recipe of U-REPA).
    """
    if kind == "linear":
        projector: nn.Module = nn.Sequential(nn.LayerNorm(student_width), nn.Linear(student_width, teacher_width))
    elif kind == "mlp":
        projector = nn.Sequential(
            nn.Linear(student_width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, teacher_width),
        )
    elif kind == "conv":
        if kernel_size % 2 == 0:
            raise ValueError(f"irepa_projector_kernel_size is {kernel_size}; it must be odd, so that tokens stay put.")
        projector = GridProjector(nn.Conv2d(student_width, teacher_width, kernel_size, padding=kernel_size // 2))
    elif kind == "conv_gn":
        if teacher_width % 32:
            raise ValueError(
                f"The projector 'conv_gn' has GroupNorm(32), which a teacher of width {teacher_width} doesn't divide "
                "into; use 'linear', 'mlp' or 'conv'."
            )
        projector = GridProjector(
            nn.Sequential(
                nn.Conv2d(student_width, teacher_width, 1, bias=False), nn.GroupNorm(32, teacher_width), nn.GELU()
            )
        )
    else:
        raise ValueError(f"The projector is {kind!r}; choose 'linear', 'mlp', 'conv' or 'conv_gn'.")
    for module in projector.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return projector.float()


def project(projector: nn.Module, tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Runs any projector on tokens `(B, T, N, D)`, in fp32 also under autocast."""
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.float()
        return projector(tokens, grid) if isinstance(projector, GridProjector) else projector(tokens)
