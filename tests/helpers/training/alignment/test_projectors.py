from __future__ import annotations

import pytest
import torch
from torch import nn

from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.alignment.projectors import ProjectorName, make_projector, project

KINDS: tuple[ProjectorName, ...] = ("linear", "mlp", "conv", "conv_gn")


@pytest.mark.parametrize("kind", KINDS)
def test_every_projector_maps_widths_in_fp32_and_trains(kind: ProjectorName) -> None:
    projector = make_projector(kind, 6, 64)
    tokens = torch.randn(2, 3, 20, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = project(projector, tokens, TokenGrid(3, 4, 5))
    assert out.shape == (2, 3, 20, 64) and out.dtype == torch.float32
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters() if p.ndim > 1)


def test_repas_mlp() -> None:
    layers = make_projector("mlp", 6, 8)
    assert [type(layer).__name__ for layer in layers.children()] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert [p.shape for p in layers.parameters() if p.ndim > 1] == [(2048, 6), (2048, 2048), (8, 2048)]


def test_conv_sees_neighbours_on_the_grid() -> None:
    """The token right below is a neighbour; the next token in the row after the last column is not."""
    grid, projector = TokenGrid(1, 4, 6), make_projector("conv", 2, 3)
    tokens = torch.zeros(1, 1, 24, 2)
    base = project(projector, tokens, grid)
    tokens[0, 0, 1 * 6 + 5] = 1.0  # row 1, last column
    moved = (project(projector, tokens, grid) - base).abs().sum(-1).view(4, 6) > 0
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[0:3, 4:6] = True
    assert torch.equal(moved, expected)


def test_any_module_over_the_last_axis_works() -> None:
    out = project(nn.Identity(), torch.ones(1, 1, 4, 2), TokenGrid(1, 2, 2))
    assert out.shape == (1, 1, 4, 2)


def test_bad_projectors_are_refused() -> None:
    with pytest.raises(ValueError, match="'dense'"):
        make_projector("dense", 4, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="irepa_projector_kernel_size is 4"):
        make_projector("conv", 4, 4, kernel_size=4)
    with pytest.raises(ValueError, match="teacher of width 50"):
        make_projector("conv_gn", 4, 50)
