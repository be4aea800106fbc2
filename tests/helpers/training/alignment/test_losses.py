"""Each loss against a naive float64 reference with explicit loops, and its gradient by gradcheck."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def plain_manifold(student: Tensor, teacher: Tensor) -> Tensor:
    """N×N for all samples at once, by autograd."""
    y, h = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return (y @ y.mT - h @ h.mT).square().mean()


def value_and_gradient(
    function: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = function(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *made])
        return result


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


# Rows of a block, tokens, the student's and the teacher's width. In turn: one block, blocks of the same size, an uneven
# last one, three blocks, the D×D form (N > 2.5 D) twice, unequal widths in one block and in uneven ones, one token, one
# row a block.
FORMS = [(99, 4, 7, 7), (3, 6, 6, 6), (4, 7, 5, 5), (4, 11, 6, 6), (99, 9, 3, 3), (3, 20, 3, 3)]
FORMS += [(99, 12, 3, 5), (5, 12, 5, 3), (99, 1, 3, 3), (1, 5, 4, 4)]


@pytest.mark.parametrize(("rows", "count", "width", "teacher_width"), FORMS)
def test_manifold_equals_the_double_loop(
    rows: int, count: int, width: int, teacher_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "GRAM_ROWS", rows)
    student, teacher = tokens(2, count, width, seed=3), tokens(2, count, teacher_width, seed=4)
    expected = naive_manifold(student, teacher)
    _, expected_gradient = value_and_gradient(plain_manifold, student, teacher)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        value, gradient = value_and_gradient(losses.manifold_loss, student.to(dtype), teacher.to(dtype))
        assert value.dtype == gradient.dtype == dtype
        assert value.item() == pytest.approx(expected, abs=tolerance)
        torch.testing.assert_close(gradient.double(), expected_gradient, atol=tolerance, rtol=tolerance)
        one = student.to(dtype).requires_grad_()
        with torch.no_grad():
            assert losses.manifold_loss(one, teacher.to(dtype)).item() == value.item()
    one = student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: losses.manifold_loss(s, teacher), one)


@settings(deadline=None, max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 14), st.integers(1, 6)),
    teacher_width=st.none() | st.integers(1, 6),
    rows=st.integers(1, 16),
    elements=st.integers(1, 400),
    seed=st.integers(0, 10**6),
)
def test_manifold_of_any_shape_in_any_parts(
    shape: tuple[int, int, int], teacher_width: int | None, rows: int, elements: int, seed: int
) -> None:
    student = tokens(*shape, seed=seed)
    teacher = tokens(*shape[:2], shape[2] if teacher_width is None else teacher_width, seed=seed + 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(losses, "GRAM_ROWS", rows)
        monkeypatch.setattr(losses, "ELEMENTS", elements)
        got = value_and_gradient(losses.manifold_loss, student, teacher)
    # A token close to zero has a huge gradient: relative to the largest.
    for ours, plain in zip(got, value_and_gradient(plain_manifold, student, teacher), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-9 * max(1.0, plain.abs().max().item()), rtol=1e-9)


@pytest.mark.parametrize(("count", "width"), [(40, 64), (40, 4)])
@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4])
def test_manifold_is_exact_where_student_and_teacher_nearly_agree(
    distance: float, count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither form may cancel. What is left is the rounding of the normalised tokens, relative to their distance."""
    monkeypatch.setattr(losses, "GRAM_ROWS", 16)
    teacher = tokens(2, count, width, seed=5).float()
    student = teacher + distance * tokens(2, count, width, seed=6).float()
    value, gradient = value_and_gradient(losses.manifold_loss, student, teacher)
    expected, expected_gradient = value_and_gradient(plain_manifold, student.double(), teacher.double())
    assert value.item() == pytest.approx(expected.item(), rel=max(1e-5, 1e-8 / distance))
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error <= 2e-7 / distance


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


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_manifold_is_symmetric_and_never_negative(samples: int, count: int, width: int, seed: int) -> None:
    a, b = tokens(samples, count, width, seed=seed), tokens(samples, count, width, seed=seed + 1)
    value = losses.manifold_loss(a, b)
    assert value >= -1e-12
    torch.testing.assert_close(value, losses.manifold_loss(b, a))


@pytest.mark.parametrize(("width", "teacher_width"), [(10, 10), (4, 4), (5, 10)])
def test_manifold_never_holds_all_pairs_of_tokens(
    width: int, teacher_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bounds no tensor holds N×N elements, of one sample or of several, and backward waits for one N×D."""
    samples, count = 2, 24
    monkeypatch.setattr(losses, "GRAM_ROWS", 8)
    monkeypatch.setattr(losses, "ELEMENTS", 250)
    student, teacher = tokens(samples, count, width).requires_grad_(), tokens(samples, count, teacher_width, seed=1)
    saved: list[tuple[int, ...]] = []
    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
            value = losses.manifold_loss(student, teacher)
        torch.autograd.grad(value, student)
    with LargestTensor() as plain:
        plain_manifold(student, teacher)
    assert plain.elements == samples * count**2  # it does see them
    assert largest.elements == samples * count * max(width, teacher_width) < count**2
    assert saved == [(samples, count, width)]


def test_manifold_takes_few_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ELEMENTS", 3 * 8 * 8)
    student, teacher = tokens(4, 8, 4), tokens(4, 8, 4, seed=1)
    with LargestTensor() as largest:
        losses.manifold_loss(student, teacher)
    assert largest.elements == 3 * 8 * 8


def test_manifold_gradient_is_scaled_by_what_comes_after() -> None:
    student, teacher = tokens(2, 6, 4, seed=1), tokens(2, 6, 4, seed=2)
    _, gradient = value_and_gradient(losses.manifold_loss, student, teacher)
    _, scaled = value_and_gradient(lambda s, t: 3 * losses.manifold_loss(s, t), student, teacher)
    torch.testing.assert_close(scaled, 3 * gradient)
    leaf = student.requires_grad_()
    value = losses.manifold_loss(leaf, teacher)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(leaf.grad, 2 * gradient)


def test_manifold_passes_no_gradient_to_the_teacher() -> None:
    student, teacher = (tokens(2, 6, 4, seed=s).requires_grad_() for s in (1, 2))
    losses.manifold_loss(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None
    assert not losses.manifold_loss(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("width", [16, 4])
def test_manifold_is_fp32_under_autocast(width: int) -> None:
    student, teacher = tokens(2, 12, width, seed=1).float(), tokens(2, 12, width, seed=2).float()
    expected = value_and_gradient(losses.manifold_loss, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradient(losses.manifold_loss, student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_manifold_gradient_of_half_precision_tokens(dtype: torch.dtype) -> None:
    """Scaled before it is rounded: in fp16 it would be lost otherwise, as that of these long tokens."""
    student, teacher = (1e3 * tokens(1, 40, 32, seed=1)).to(dtype), tokens(1, 40, 32, seed=2).to(dtype)
    _, gradient = value_and_gradient(lambda s, t: 2.0**16 * losses.manifold_loss(s, t), student, teacher)
    _, expected = value_and_gradient(lambda s, t: 2.0**16 * plain_manifold(s, t), student.double(), teacher.double())
    assert gradient.dtype == dtype
    assert (gradient - expected).norm() <= 0.01 * expected.norm()
