"""Which token of the captured hidden states belongs to which patch of the latents."""

from __future__ import annotations

import pytest
import torch

from simpletuner.configuration import Family
from simpletuner.helpers.models.registry import FAMILIES, default_tap
from simpletuner.helpers.utils.hidden_state_buffer import (
    HiddenStateBuffer,
    TransformerBlockCapture,
    UNetMidBlockCapture,
    layer_key,
)
from tests.conftest import MakeFoundation
from tests.helpers.models.cases import LATENTS, text_batch


@pytest.mark.parametrize("name", ["dit", "dit_pixels", "sd3", "wan"])
def test_every_patch_moves_its_own_token_most(name: str, make_foundation: MakeFoundation) -> None:
    """Mistakes 5, 6, 7: scrambled columns, text taken for image tokens, frames taken for tokens."""
    foundation = make_foundation(name)
    model = foundation.load_model().eval()
    shape = LATENTS[name]
    grid = foundation.student_grid(torch.zeros(1, *shape))
    patches = [(t, h, w) for t in range(grid.frames) for h in range(grid.height) for w in range(grid.width)]
    generator = torch.Generator().manual_seed(0)
    # Row 0 is left alone, row 1 + i has its i-th patch perturbed.
    latents = torch.randn(1, *shape, generator=generator).repeat(1 + len(patches), *[1] * len(shape))
    for row, (t, h, w) in enumerate(patches, start=1):
        frame = latents[row] if len(shape) == 3 else latents[row, :, t]
        frame[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2] += 1.0
    layers = range(len(foundation.blocks))
    capture = TransformerBlockCapture(model, foundation.blocks, foundation.select_tokens, HiddenStateBuffer(layers))
    batch = {
        "noisy_latents": latents,
        "timesteps": torch.full((len(latents),), 500.0),
        "text": text_batch(foundation, name, len(latents)),
    }
    with torch.no_grad(), capture as buffer:
        foundation.forward(batch)
    assert len(buffer) == len(foundation.blocks) == 3
    for layer in layers:
        tokens = buffer[layer_key(layer)]
        assert tokens.shape == (len(latents), grid.tokens, foundation.hidden_size)
        moved = (tokens[1:] - tokens[:1]).norm(dim=-1)
        assert moved.argmax(1).tolist() == list(range(len(patches))), f"block {layer}"


def test_the_mid_block_keeps_the_aspect_ratio_and_the_rough_position(make_foundation: MakeFoundation) -> None:
    """Mistake 5: a mid-block cell lies where its eight latent rows and columns lie, give or take a cell."""
    foundation = make_foundation("sd1x")
    unet = foundation.load_model().eval()
    corners = [(row, column) for row in (0, 3, 7) for column in (0, 2, 4)]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 64, 40, generator=generator).repeat(1 + len(corners), 1, 1, 1)
    for index, (row, column) in enumerate(corners, start=1):
        latents[index, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3.0
    batch = {
        "noisy_latents": latents,
        "timesteps": torch.full((len(latents),), 500),
        "text": text_batch(foundation, "sd1x", len(latents)),
    }
    capture = UNetMidBlockCapture(unet)
    with torch.no_grad(), capture as buffer:
        foundation.forward(batch)
    maps = buffer["layer_mid"]
    assert maps.shape == (len(latents), foundation.hidden_size, 8, 5)
    moved = (maps[1:] - maps[:1]).norm(dim=1).flatten(1).argmax(1)
    for index, (row, column) in zip(moved.tolist(), corners, strict=True):
        assert abs(index // 5 - row) <= 1
        assert abs(index % 5 - column) <= 1


@pytest.mark.parametrize(
    ("family", "depth", "tap"),
    [("dit", 28, 8), ("dit", 12, 3), ("dit", 6, 2), ("dit", 3, 1), ("dit", 1, 0), ("sd3", 38, 8), ("wan", 40, 8)],
)
def test_default_tap_keeps_its_share_of_the_depth(family: str, depth: int, tap: int) -> None:
    assert default_tap(FAMILIES[family], depth) == tap


def test_a_unet_has_no_default_tap() -> None:
    family: Family = FAMILIES["sd1x"]
    with pytest.raises(ValueError, match="crepa_"):
        default_tap(family, 4)
