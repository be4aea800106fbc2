"""Each loss against a naive float64 reference with explicit loops, and its gradient by gradcheck."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simpletuner.helpers.training.alignment import losses


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a)) / math.sqrt(sum(float(y) ** 2 for y in b))


def naive_crepa(
    student: Tensor,
    teacher: Tensor,
    distance: int,
    tau: float,
    *,
    cumulative: bool,
    normalise_sum: bool,
    by_frames: bool,
) -> list[float]:
    scores = []
    for sample in range(student.shape[0]):
        total = 0.0
        frames = student.shape[1]
        for f in range(frames):
            score, weights = 0.0, 0.0
            for k in range(frames):
                offset = abs(k - f)
                neighbour = 1 <= offset <= distance if cumulative else offset == distance and distance > 0
                if k != f and not neighbour:
                    continue
                weight = 1.0 if k == f else math.exp(-offset / tau)
                pairs = [cosine(student[sample, f, n], teacher[sample, k, n]) for n in range(student.shape[2])]
                score += weight * sum(pairs) / len(pairs)
                weights += weight
            total += score / weights if normalise_sum else score
        scores.append(total / frames if by_frames else total)
    return scores


def naive_manifold(student: Tensor, teacher: Tensor) -> float:
    total, sets, count = 0.0, student.shape[0], student.shape[1]
    for sample in range(sets):
        for i in range(count):
            for j in range(count):
                own = cosine(student[sample, i], student[sample, j])
                total += (own - cosine(teacher[sample, i], teacher[sample, j])) ** 2
    return total / (sets * count * count)


@pytest.mark.parametrize("shape", [(2, 1, 9, 5), (2, 1, 6, 5), (1, 3, 6, 4), (2, 5, 4, 3), (1, 2, 1, 4)])
@pytest.mark.parametrize("distance", [0, 1, 2])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("normalise_sum", [False, True])
@pytest.mark.parametrize("by_frames", [False, True])
def test_crepa_equals_the_double_loop(
    shape: tuple[int, ...], distance: int, cumulative: bool, normalise_sum: bool, by_frames: bool
) -> None:
    student, teacher = tokens(*shape, seed=1), tokens(*shape, seed=2)
    weights = losses.neighbour_weights(
        shape[1], distance=distance, tau=0.7, cumulative=cumulative, normalise_sum=normalise_sum
    )
    score, similarity = losses.neighbour_alignment(
        student.float(), teacher.float(), weights, normalise_by_frames=by_frames
    )
    expected = naive_crepa(
        student, teacher, distance, 0.7, cumulative=cumulative, normalise_sum=normalise_sum, by_frames=by_frames
    )
    torch.testing.assert_close(score.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
    own = [
        [sum(cosine(student[b, f, n], teacher[b, f, n]) for n in range(shape[2])) / shape[2] for f in range(shape[1])]
        for b in range(shape[0])
    ]
    torch.testing.assert_close(similarity.double(), torch.tensor(own).double(), atol=1e-5, rtol=0)


def test_an_interior_frame_scores_up_to_1_736() -> None:
    """The sum over neighbours isn't normalised in the paper (d = tau = 1)."""
    same = tokens(1, 1, 4, 3).expand(1, 3, 4, 3)
    weights = losses.neighbour_weights(3, distance=1, tau=1.0)
    assert weights[1].sum().item() == pytest.approx(1 + 2 * math.exp(-1), abs=1e-6)
    score, similarity = losses.neighbour_alignment(same, same, weights, normalise_by_frames=False)
    assert score.item() == pytest.approx(3 + 4 * math.exp(-1), abs=1e-5)
    torch.testing.assert_close(similarity, torch.ones(1, 3, dtype=torch.float64))


@pytest.mark.parametrize(("count", "width"), [(4, 7), (6, 6), (9, 4), (20, 3), (1, 3)])
def test_manifold_equals_the_double_loop(count: int, width: int) -> None:
    student, teacher = tokens(2, count, width, seed=3), tokens(2, count, width, seed=4)
    got = losses.manifold_loss(student.float(), teacher.float())
    assert got.item() == pytest.approx(naive_manifold(student, teacher), abs=1e-5)


def test_manifold_of_different_widths() -> None:
    student, teacher = tokens(2, 12, 3, seed=3), tokens(2, 12, 5, seed=4)
    assert losses.manifold_loss(student, teacher).item() == pytest.approx(naive_manifold(student, teacher), abs=1e-12)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_manifold_is_exact_where_student_and_teacher_nearly_agree(distance: float) -> None:
    """The D×D form must not cancel: relative error, not absolute."""
    teacher = tokens(1, 40, 4, seed=5)
    student = teacher + distance * tokens(1, 40, 4, seed=6)
    expected = naive_manifold(student, teacher)
    assert losses.manifold_loss(student.float(), teacher.float()).item() == pytest.approx(expected, rel=1e-3)


def test_manifold_goes_down_when_the_geometry_fits() -> None:
    """U-REPA's printed equation has the sign that would maximise the mismatch."""
    teacher = tokens(1, 6, 4, seed=7)
    assert losses.manifold_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert losses.manifold_loss(tokens(1, 6, 4, seed=8), teacher).item() > 0.01


def test_sample_manifold_compares_pooled_samples() -> None:
    student, teacher = tokens(3, 1, 5, 4, seed=1), tokens(3, 1, 5, 4, seed=2)
    pooled = [
        torch.stack([(x[b, 0] / x[b, 0].norm(dim=-1, keepdim=True)).mean(0) for b in range(3)])[None]
        for x in (student, teacher)
    ]
    assert losses.sample_manifold_loss(student, teacher).item() == pytest.approx(naive_manifold(*pooled), abs=1e-10)


def test_layer_cosine_passes_no_gradient_to_the_teacher() -> None:
    student, teacher = (tokens(2, 4, 3, seed=s).requires_grad_() for s in (1, 2))
    value = losses.layer_cosine(student, teacher)
    expected = sum(cosine(student[b, n].detach(), teacher[b, n].detach()) for b in range(2) for n in range(4)) / 8
    assert value.item() == pytest.approx(expected, abs=1e-10)
    value.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_token_cosine_is_the_mean_over_the_tokens_of_a_frame() -> None:
    student, teacher = tokens(2, 3, 5, 4, seed=1), tokens(2, 3, 5, 4, seed=2)
    expected = torch.nn.functional.cosine_similarity(student, teacher, dim=-1).mean(-1)
    torch.testing.assert_close(losses.token_cosine(student, teacher), expected)
    torch.testing.assert_close(losses.token_cosine(student * 100, teacher), expected)


def test_half_precision_input_is_compared_in_fp32() -> None:
    student, teacher = tokens(1, 1, 50, 64, seed=1), tokens(1, 1, 50, 64, seed=2)
    got = losses.token_cosine(student.bfloat16(), teacher.bfloat16())
    assert got.dtype == torch.float32
    rounded = losses.token_cosine(student.bfloat16().double(), teacher.bfloat16().double())
    torch.testing.assert_close(got.double(), rounded, atol=1e-6, rtol=0)


def test_spatial_norm_is_irepas() -> None:
    teacher = tokens(2, 1, 7, 3)
    got = losses.spatial_norm(teacher, 0.6)
    for b in range(2):
        for d in range(3):
            column = [float(v) for v in teacher[b, 0, :, d]]
            mean = sum(column) / 7
            std = math.sqrt(sum((v - mean) ** 2 for v in column) / 7)
            expected = torch.tensor([(v - 0.6 * mean) / (std + 1e-6) for v in column], dtype=torch.float64)
            torch.testing.assert_close(got[b, 0, :, d], expected)


@pytest.mark.parametrize("frames", [1, 3])
def test_gradients(frames: int) -> None:
    student, teacher = tokens(2, frames, 3, 4, seed=1).requires_grad_(), tokens(2, frames, 3, 4, seed=2)
    weights = losses.neighbour_weights(frames, distance=1, tau=1.0).double()
    assert torch.autograd.gradcheck(lambda s: losses.neighbour_alignment(s, teacher, weights)[0], student)
    assert torch.autograd.gradcheck(lambda s: losses.token_cosine(s, teacher), student)
    assert torch.autograd.gradcheck(lambda s: losses.sample_manifold_loss(s, teacher), student)
    # The D×D form is taken for N > 2 D, the N×N form otherwise.
    for count, width in ((3, 4), (9, 2)):
        one, other = tokens(1, count, width, seed=3).requires_grad_(), tokens(1, count, width, seed=4)
        assert torch.autograd.gradcheck(lambda s, t=other: losses.manifold_loss(s, t), one)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_manifold_is_symmetric_and_never_negative(samples: int, count: int, width: int, seed: int) -> None:
    a, b = tokens(samples, count, width, seed=seed), tokens(samples, count, width, seed=seed + 1)
    value = losses.manifold_loss(a, b)
    assert value >= -1e-12
    torch.testing.assert_close(value, losses.manifold_loss(b, a))


def test_manifold_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the memory bound are computed, and computed again in the backward pass, a part at a time."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 11, 8, generator=generator, dtype=torch.float64)
    whole = losses.manifold_loss(student, teacher)
    (expected,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(losses, "GRAM_ROWS", 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
        parts = losses.manifold_loss(student, teacher)
    (gradient,) = torch.autograd.grad(parts, student)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient, expected)
    assert not [shape for shape in saved if shape[-1] == 11], saved  # no rows of a Gram matrix wait for the backward
