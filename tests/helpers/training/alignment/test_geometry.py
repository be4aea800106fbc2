from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from simpletuner.helpers.training.alignment.geometry import (
    TokenGrid,
    meeting_grid,
    pixel_frames_of_latents,
    resample_tokens,
    split_frames,
    square_grid,
    teacher_input_size,
    to_maps,
    to_tokens,
)

side = st.integers(1, 9)


def ramp(grid: TokenGrid) -> torch.Tensor:
    """Tokens that carry their own (frame, row, column) centre in [0, 1]: `(1, T, N, 3)`."""
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (grid.frames, grid.height, grid.width)]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return mesh.reshape(1, grid.frames, grid.tokens_per_frame, 3)


@settings(deadline=None)
@given(side, side, side)
def test_maps_and_tokens_are_row_major_and_inverse(frames: int, height: int, width: int) -> None:
    grid = TokenGrid(frames, height, width)
    tokens = torch.arange(2 * grid.tokens).reshape(2, grid.tokens, 1)
    maps = to_maps(split_frames(tokens, grid), grid)
    assert maps[0, 0, height - 1, 0] == (height - 1) * width
    assert torch.equal(to_tokens(maps, frames).flatten(1, 2), tokens)


@settings(deadline=None)
@given(*[side] * 6)
def test_resampling_keeps_constants_and_shapes(f: int, h: int, w: int, f2: int, h2: int, w2: int) -> None:
    source, target = TokenGrid(f, h, w), TokenGrid(f2, h2, w2)
    tokens = torch.full((2, f, h * w, 3), 1.7)
    out = resample_tokens(tokens, source, target)
    assert out.shape == (2, f2, h2 * w2, 3)
    torch.testing.assert_close(out, torch.full_like(out, 1.7))


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9), st.integers(2, 9))
def test_resampled_tokens_stay_where_they_were(h: int, w: int, h2: int, w2: int) -> None:
    """Mistake 5: rows stay rows and columns columns, on any pair of grids, and the order within each is kept."""
    out = resample_tokens(ramp(TokenGrid(1, h, w)), TokenGrid(1, h, w), TokenGrid(1, h2, w2)).view(h2, w2, 3)
    assert torch.allclose(out[:, :, 1], out[:, :1, 1].expand(h2, w2))
    assert torch.allclose(out[:, :, 2], out[:1, :, 2].expand(h2, w2))
    assert (out[1:, 0, 1] >= out[:-1, 0, 1] - 1e-9).all()
    assert (out[0, 1:, 2] >= out[0, :-1, 2] - 1e-9).all()


def test_resampling_interpolates_a_ramp_at_pixel_centres() -> None:
    source, target = TokenGrid(1, 8, 16), TokenGrid(1, 4, 8)
    out = resample_tokens(ramp(source), source, target).view(4, 8, 3)
    expected = ramp(target).view(4, 8, 3)
    torch.testing.assert_close(out[1:3, 1:7], expected[1:3, 1:7], atol=1e-9, rtol=0)


def test_an_18_by_32_grid_is_not_taken_for_24_by_24() -> None:
    """Mistake 5: both have 576 tokens; a vertical edge must stay vertical."""
    grid, target = TokenGrid(1, 18, 32), TokenGrid(1, 9, 16)
    edge = (torch.arange(32) >= 16).float().expand(18, 32).reshape(1, 1, 576, 1)
    out = resample_tokens(edge, grid, target).view(9, 16)
    assert torch.equal(out[:, :7], torch.zeros(9, 7))
    assert torch.equal(out[:, 9:], torch.ones(9, 7))


def test_shrinking_is_antialiased() -> None:
    """Mistake 18: a checkerboard that shrinks fourfold becomes grey, not black or white."""
    board = (torch.arange(16)[:, None] + torch.arange(16)[None, :]) % 2
    out = resample_tokens(board.float().view(1, 1, 256, 1), TokenGrid(1, 16, 16), TokenGrid(1, 4, 4)).view(4, 4)
    torch.testing.assert_close(out[1:3, 1:3], torch.full((2, 2), 0.5), atol=0.02, rtol=0)


def test_frames_are_interpolated_linearly() -> None:
    tokens = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 4, 1, 1)
    out = resample_tokens(tokens, TokenGrid(4, 1, 1), TokenGrid(2, 1, 1)).flatten()
    torch.testing.assert_close(out, torch.tensor([0.7142857, 2.2857143]))
    grown = resample_tokens(tokens, TokenGrid(4, 1, 1), TokenGrid(8, 1, 1)).flatten()
    torch.testing.assert_close(grown, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))


def test_video_tokens_divide_into_frames_by_their_grid() -> None:
    """Mistake 7: `(B, T·H·W, D)` is T frames of H·W tokens, not T·H·W frames."""
    tokens = torch.arange(2 * 3 * 4 * 5).float().view(2, 60, 1)
    frames = split_frames(tokens, TokenGrid(3, 4, 5))
    assert frames.shape == (2, 3, 20, 1)
    assert frames[0, 1, 0, 0] == 20
    with pytest.raises(ValueError, match=r"60, 1.*don't fill the token grid 3×4×4"):
        split_frames(tokens, TokenGrid(3, 4, 4))


@settings(deadline=None)
@given(st.integers(64, 4096), st.integers(64, 4096), st.sampled_from([14, 16]), st.integers(224, 1024))
def test_teacher_input_keeps_area_and_aspect(height: int, width: int, patch: int, size: int) -> None:
    """Mistake 18: never squashed to a square."""
    h, w = teacher_input_size(height, width, patch=patch, image_size=size)
    assert h % patch == 0 and w % patch == 0
    aspect = (height / width) ** 0.5
    assert abs(h - max(patch, size * aspect)) <= patch / 2 + 1e-6
    assert abs(w - max(patch, size / aspect)) <= patch / 2 + 1e-6


def test_auto_makes_the_teacher_grid_the_students() -> None:
    grid = TokenGrid(1, 16, 20)
    assert teacher_input_size(256, 320, patch=14, image_size="auto", student_grid=grid) == (224, 280)
    assert teacher_input_size(256, 320, patch=14, image_size="auto", student_grid=grid, scale=2) == (448, 560)


def test_auto_is_capped_by_the_native_area() -> None:
    grid = TokenGrid(1, 128, 64)
    h, w = teacher_input_size(1, 1, patch=14, image_size="auto", student_grid=grid, native_size=518)
    assert (h, w) == (728, 364)
    with pytest.raises(ValueError, match="'auto' needs the student's token grid"):
        teacher_input_size(64, 64, patch=14, image_size="auto")
    with pytest.raises(ValueError, match="'big'"):
        teacher_input_size(64, 64, patch=14, image_size="big")


def test_the_teacher_sees_the_last_frame_of_each_latent_group() -> None:
    """Mistake 11: 81 frames and ratio 4 make 21 latent frames, and only 21 frames are encoded."""
    frames = pixel_frames_of_latents(21, 4)
    assert frames[:3] == [0, 4, 8] and frames[-1] == 80 and len(frames) == 21
    assert pixel_frames_of_latents(1, 4) == [0]


@pytest.mark.parametrize(
    ("where", "expected"), [("smaller", (1, 16, 16)), ("student", (1, 16, 16)), ("teacher", (1, 37, 30))]
)
def test_meeting_grid(where: str, expected: tuple[int, int, int]) -> None:
    assert meeting_grid(TokenGrid(1, 16, 16), TokenGrid(1, 37, 30), where) == TokenGrid(*expected)


def test_a_grid_is_only_implied_by_a_square() -> None:
    assert square_grid(49, frames=2) == TokenGrid(2, 7, 7)
    with pytest.raises(ValueError, match="48 tokens make no square"):
        square_grid(48)
    with pytest.raises(ValueError, match="at least one"):
        TokenGrid(0, 1, 1)


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(2, 20), st.integers(2, 20))  # torch errs on a width of 1
def test_without_offsets_it_is_torchs_antialiased_bilinear_resampling(h: int, w: int, h2: int, w2: int) -> None:
    maps = torch.randn(2, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = maps.flatten(2).transpose(1, 2)[:, None]
    out = resample_tokens(tokens, TokenGrid(1, h, w), TokenGrid(1, h2, w2))
    expected = F.interpolate(maps, (h2, w2), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(out[:, 0].transpose(1, 2).unflatten(2, (h2, w2)), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("offset", [-0.4375, 0.25])
def test_offsets_say_where_a_cells_features_are_centred(offset: float) -> None:
    """A ramp keeps its values at true positions, whichever side is displaced; borders can't be extrapolated."""
    plain, shifted = TokenGrid(1, 16, 16), TokenGrid(1, 8, 8, offset)
    position = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    shifted_position = (torch.arange(8, dtype=torch.float64) + 0.5 + offset) / 8
    ramp = position.expand(16, 16).reshape(1, 1, 256, 1)
    out = resample_tokens(ramp, plain, shifted).view(8, 8)
    torch.testing.assert_close(out[:, 1:7], shifted_position[1:7].expand(8, 6))
    ramp = shifted_position.expand(8, 8).reshape(1, 1, 64, 1)
    out = resample_tokens(ramp, shifted, plain).view(16, 16)
    torch.testing.assert_close(out[:, 2:14], position[2:14].expand(16, 12))


def test_weights_that_a_teacher_asked_for_first_serve_a_student() -> None:
    """They are remembered, and a tensor made in inference mode can't be kept for a backward pass."""
    grid, target = TokenGrid(1, 3, 7), TokenGrid(1, 11, 5)
    with torch.inference_mode():
        resample_tokens(torch.randn(1, 1, 21, 4), grid, target)
    student = torch.randn(1, 1, 21, 4, requires_grad=True)
    resample_tokens(student, grid, target).square().sum().backward()
    assert student.grad is not None
