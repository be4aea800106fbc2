"""Which token of the captured hidden states belongs to which patch of the latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simpletuner.configuration import Family
from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.models.registry import FAMILIES, default_tap
from simpletuner.helpers.training.alignment.geometry import TokenGrid, resample_tokens
from simpletuner.helpers.utils.hidden_state_buffer import (
    HiddenStateBuffer,
    TransformerBlockCapture,
    UNetMidBlockCapture,
    layer_key,
)
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import make_batch, prepared, text_batch

TRANSFORMERS = [name for name, case in CASES.items() if case.family.model_type == "transformer"]
UNETS = [name for name, case in CASES.items() if case.family.model_type == "unet"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_patch_moves_its_own_token_most(name: str, make_foundation: MakeFoundation) -> None:
    """Mistakes 5, 6, 7: scrambled columns, text taken for image tokens, frames taken for tokens."""
    foundation = make_foundation(name)
    model = foundation.load_model().eval()
    shape = CASES[name].latents
    grid = foundation.student_grid(torch.zeros(1, *shape))
    side = shape[-1] // grid.width
    patches = [(t, h, w) for t in range(grid.frames) for h in range(grid.height) for w in range(grid.width)]
    generator = torch.Generator().manual_seed(0)
    # Rows 0 and 1 are left alone, row 2 + i has its i-th patch perturbed. Even and odd rows have prompts of different
    # lengths, which must not mix.
    latents = torch.randn(1, *shape, generator=generator).repeat(2 + len(patches), *[1] * len(shape))
    for row, (t, h, w) in enumerate(patches, start=2):
        frame = latents[row] if len(shape) == 3 else latents[row, :, t]
        frame[:, side * h : side * (h + 1), side * w : side * (w + 1)] += 1.0
    layers = range(len(foundation.blocks))
    capture = TransformerBlockCapture(model, foundation.blocks, foundation.select_tokens, HiddenStateBuffer(layers))
    batch = {
        "noisy_latents": latents,
        "timesteps": torch.full((len(latents),), 500.0),
        "text": text_batch(foundation, name, len(latents)),
    }
    with torch.no_grad(), capture as buffer:
        foundation.forward(batch)
    assert len(buffer) == len(foundation.blocks) >= 3
    for layer in layers:
        tokens = buffer[layer_key(layer)]
        assert tokens.shape == (len(latents), grid.tokens, foundation.hidden_size)
        moved = (tokens[2:] - tokens[:2].repeat(len(patches), 1, 1)[: len(patches)]).norm(dim=-1)
        assert moved.argmax(1).tolist() == list(range(len(patches))), f"block {layer}"


@pytest.mark.parametrize("name", UNETS)
def test_a_bright_square_is_found_in_the_mid_block_where_the_teacher_has_it(
    name: str, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    """Mistake 5, and strided convolutions, which move what the middle sees up and to the left by most of half a cell.

    The teacher's map of the square, brought onto the mid-block's grid, has its centre where the mid-block responds.
    """
    foundation = make_foundation(name, urepa_enabled=True, urepa_model=str(tiny_teacher))
    foundation.load_model().eval()
    side, cells = foundation.family.patch_size, (8, 10)
    latents_grid = TokenGrid(1, cells[0] * side, cells[1] * side)
    spots = [
        (row, column) for row in range(2 * side, 5 * side, side // 2) for column in range(3 * side, 7 * side, side // 2)
    ]
    squares = torch.zeros(len(spots), latents_grid.height, latents_grid.width)
    for square, (row, column) in zip(squares, spots, strict=True):
        square[row : row + side, column : column + side] = 1
    noise = torch.randn(1, 4, *squares.shape[1:], generator=torch.Generator().manual_seed(0))
    noisy = torch.cat([noise, noise + squares[:, None]])
    batch = make_batch(foundation, name, len(noisy)) | {
        "noisy_latents": noisy,
        "timesteps": torch.full((len(noisy),), 500),
    }
    batch["text"] = {key: rows[:1].expand_as(rows) for key, rows in batch["text"].items()}
    capture = UNetMidBlockCapture(foundation.unwrap_model())
    with torch.no_grad(), capture as buffer:
        foundation.forward(batch)
    maps = buffer["layer_mid"]
    assert maps.shape == (len(noisy), foundation.hidden_size, *cells)
    response = (maps[1:] - maps[:1]).square().sum(1)
    response = response * (response > 0.1 * response.amax((1, 2), keepdim=True))
    assert foundation.urepa_regularizer is not None
    grid = foundation.urepa_regularizer.student_grid(maps)
    expected = resample_tokens(squares.flatten(1)[:, None, :, None], latents_grid, grid).view(-1, *cells)
    for axis in (1, 2):
        error = (centres(response, axis) - centres(expected, axis)).mean()
        assert abs(error) < 0.2, f"{error:+.2f} cells"
    unaware = resample_tokens(squares.flatten(1)[:, None, :, None], latents_grid, replace(grid, offset=0.0))
    assert (centres(response, 1) - centres(unaware.view(-1, *cells), 1)).mean() > 0.2


@pytest.mark.parametrize("name", CASES)
def test_the_students_grid_is_known_before_the_model_is_loaded(
    name: str, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    """The feature cache is built before: a teacher whose grid follows the student's needs it there."""
    case = CASES[name]
    prefix = "urepa" if name in UNETS else "crepa"
    encoder = "model" if prefix == "urepa" else "encoder"
    foundation = make_foundation(name, **{f"{prefix}_enabled": True, f"{prefix}_{encoder}": str(tiny_teacher)})
    frames, height, width = case.pixels
    latent_frames = case.latents[-3] if case.is_video else 1
    known = foundation.sample_grid(Bucket(width, height, frames), latent_frames)
    foundation.load_model().eval()
    with torch.no_grad():
        output = foundation.model_predict(prepared(foundation, name))
    assert replace(output["token_grid"], offset=0.0) == known
    assert foundation.frame_indices(latent_frames)[-1] < frames


def centres(maps: torch.Tensor, axis: int) -> torch.Tensor:
    """The centre of mass of each map `(n, rows, columns)` along an axis, in cells."""
    shares = maps.sum(3 - axis)
    return (shares * torch.arange(shares.shape[1])).sum(1) / shares.sum(1)


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
