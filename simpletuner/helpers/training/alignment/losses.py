"""The alignment losses: pure functions of tensors, computed in fp32 (or fp64 where the input is).

Tokens are `(B, T, N, D)`: batch, frames, tokens a frame, width. The student carries the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bounds of the memory that the manifold term works in, whatever the number of tokens and samples. Rows and columns of a
# block of a Gram matrix: large enough for a matrix product at full speed.
GRAM_ROWS = 1024
# Elements of any tensor made for the samples that are worked on at once. Many small samples go together, or a GPU would
# wait for launches; no more than 8 MiB, beyond which a CPU is slower (caches, fresh pages).
ELEMENTS = 2**21


def normalise(tokens: Tensor) -> Tensor:
    """L2-normalises the last axis, in fp32 or better."""
    return F.normalize(tokens.to(_precise(tokens.dtype)), dim=-1)


def spatial_norm(tokens: Tensor, alpha: float) -> Tensor:
    """iREPA's normalisation of the teacher over space (arXiv 2512.10794), per channel and frame.

    `(y - alpha · mean over tokens) / (std over tokens + 1e-6)`, shapes kept.
    """
    tokens = tokens.to(_precise(tokens.dtype))
    mean = tokens.mean(-2, keepdim=True)
    std = tokens.std(-2, keepdim=True, unbiased=False)
    return (tokens - alpha * mean) / (std + 1e-6)


def token_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of each student token with the teacher's at its place, averaged over the N tokens: `(B, T)`.

    REPA, arXiv 2410.06940.
    """
    return (normalise(student) * normalise(teacher)).sum(-1).mean(-1)


def neighbour_weights(
    frames: int,
    *,
    distance: int,
    tau: float,
    cumulative: bool = False,
    normalise_sum: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """CREPA's banded weights `(T, T)`, fp32: entry (f, k) is the weight of teacher frame k in the score of frame f.

    1 for the frame itself and `exp(-|k - f| / tau)` for its neighbours at `distance` (at every offset 1..distance with
    `cumulative`); `normalise_sum` divides a row by its sum (arXiv 2506.09229).
    """
    index = torch.arange(frames, device=device)
    offset = (index[:, None] - index[None, :]).abs()
    near = (offset <= distance) if cumulative else (offset == distance)
    weights = torch.where(near, torch.exp(-offset.float() / tau), 0.0).fill_diagonal_(1.0)
    if normalise_sum:
        weights = weights / weights.sum(1, keepdim=True)
    return weights


def neighbour_alignment(
    student: Tensor, teacher: Tensor, weights: Tensor, *, normalise_by_frames: bool = True
) -> tuple[Tensor, Tensor]:
    """CREPA's score of each sample and the plain similarity of each frame with its own teacher frame.

    `score_f = Σ_k weights[f, k] · mean over tokens of cos(student_f, teacher_k)`. The teacher's frames are blended
    first, so that the sum over neighbours costs one banded product without a gradient.

    Returns:
        score `(B,)`, summed over frames (divided by T with `normalise_by_frames`), and similarity `(B, T)`, detached.
    """
    student, teacher = normalise(student), normalise(teacher)
    weights = weights.to(teacher.dtype)
    blended = teacher if teacher.shape[1] == 1 else torch.einsum("fk,bknd->bfnd", weights, teacher)
    per_frame = (student * blended).sum(-1).mean(-1)
    similarity = (student.detach() * teacher.detach()).sum(-1).mean(-1)
    score = per_frame.sum(1)
    return (score / student.shape[1] if normalise_by_frames else score), similarity


def manifold_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """U-REPA's manifold term (arXiv 2503.18414): how differently the tokens of a set relate to each other.

    `mean over pairs (i, j) of (<y_i, y_j> - <h_i, h_j>)²` with y, h the L2-normalised tokens of student and teacher.
    The printed equation has a sign that would maximise the mismatch; this is a distance, to be minimised.

    With Y, H the N×D matrices of tokens, `E = YYᵀ - HHᵀ` and `L = Σ E²`, the gradient is `dL/dY = 4 E Y`. The loss is a
    scalar, so the gradient is made along with it and backward only scales it: nothing but one tensor of the student's
    shape waits for backward. For equal widths, with `A = (Y - H)/2` and `S = Y + H`, `E = ASᵀ + SAᵀ`, which unlike the
    difference of two Gram matrices doesn't cancel when student and teacher nearly agree. E is either built in blocks
    (2 N²D multiply-adds with the gradient) or never (5 ND²), whichever is cheaper.

    Args:
        student: `(..., N, D)`. It alone carries the gradient, and only once (there is no second derivative).
        teacher: `(..., N, D')`, a constant; D' may differ from D.

    Returns:
        The mean over the leading axes, a scalar in fp32 (fp64 for fp64), also under autocast.
    """
    student = student.reshape(-1, *student.shape[-2:])
    teacher = teacher.detach().reshape(-1, *teacher.shape[-2:])
    with torch.autocast(student.device.type, enabled=False):
        if torch.is_grad_enabled() and student.requires_grad:
            return _ManifoldLoss.apply(student, teacher)
        return _manifold(student, teacher, None)


class _ManifoldLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        gradient = student.new_zeros(student.shape, dtype=_precise(student.dtype))
        value = _manifold(student, teacher, gradient)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        # Kept in full precision until it is scaled: it may be too small for fp16 before a loss scaler's factor.
        return (upstream * gradient).to(ctx.dtype), None


def _manifold(student: Tensor, teacher: Tensor, gradient: Tensor | None) -> Tensor:
    """The loss of `(B, N, D)` and `(B, N, D')`; its gradient is written into `gradient`, zeros, unless that is None."""
    samples, tokens, width = student.shape
    by_features = width == teacher.shape[2] and 2 * tokens > 5 * width
    add_up = _by_features if by_features else _by_tokens
    largest = max(tokens * width, tokens * teacher.shape[2], 0 if by_features else min(tokens, GRAM_ROWS) ** 2)
    at_once = max(1, ELEMENTS // largest)
    pairs = samples * tokens * tokens
    value = student.new_zeros((), dtype=_precise(student.dtype))
    for start in range(0, samples, at_once):
        part = slice(start, start + at_once)
        x = student[part].to(value.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)  # as in `normalise`
        y, own = x / length, None if gradient is None else gradient[part]
        value += add_up(y, normalise(teacher[part]).to(y.dtype), own)
        if own is not None:  # from EY to the gradient of the tokens before they were normalised
            own.addcmul_(y, (own * y).sum(-1, keepdim=True), value=-1).mul_(4 / pairs / length)
    return value / pairs


def _by_tokens(y: Tensor, h: Tensor, product: Tensor | None) -> Tensor:
    """`Σ E²`, by pairs of row blocks of E, which is symmetric; EY is added to `product`."""
    same_width = y.shape[2] == h.shape[2]
    if same_width:
        a, s = _half_difference_and_sum(y, h)
    tokens = y.shape[1]
    rows = math.ceil(tokens / math.ceil(tokens / GRAM_ROWS))  # blocks of much the same size
    blocks = [slice(start, start + rows) for start in range(0, tokens, rows)]
    value = y.new_zeros(())
    for index, i in enumerate(blocks):
        for j in blocks[index:]:
            if not same_width:
                e = (y[:, i] @ y[:, j].mT).baddbmm_(h[:, i], h[:, j].mT, alpha=-1)
            elif i == j:
                e = a[:, i] @ s[:, i].mT
                e = e + e.mT
            else:
                e = (a[:, i] @ s[:, j].mT).baddbmm_(s[:, i], a[:, j].mT)
            if product is not None:
                product[:, i].baddbmm_(e, y[:, j])
                if i != j:
                    product[:, j].baddbmm_(e.mT, y[:, i])
            value.add_(e.square_().sum(), alpha=1 if i == j else 2)
    return value


def _by_features(y: Tensor, h: Tensor, product: Tensor | None) -> Tensor:
    """The same in D×D products: `Σ E² = 2 <AᵀA, SᵀS> + 2 <AᵀS, SᵀA>` and `EY = A (SᵀY) + S (AᵀY)`, `Y = A + S/2`."""
    a, s = _half_difference_and_sum(y, h)
    aa, ss, cross = a.mT @ a, s.mT @ s, a.mT @ s
    value = 2 * ((aa * ss).sum() + (cross * cross.mT).sum())
    if product is not None:
        product.baddbmm_(a, ss.mul_(0.5).add_(cross.mT)).baddbmm_(s, aa.add_(cross, alpha=0.5))
    return value


def _half_difference_and_sum(y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A and S; S takes the place of H."""
    difference = (y - h).mul_(0.5)
    return difference, h.add_(y)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def sample_manifold_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The manifold term over the samples of a batch: tokens `(B, T, N, D)` mean-pooled, one vector a sample.

    Every rank's samples take part, so every rank has the same loss. Each carries the gradient of its own samples, times
    the number of ranks, over which gradients are averaged afterwards.
    """
    student, teacher = normalise(student).mean((1, 2)), normalise(teacher).mean((1, 2))
    return manifold_loss(_gather(student)[None], _gather(teacher)[None])


def _gather(vectors: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return vectors
    ranks, constant = torch.distributed.get_world_size(), vectors.detach().contiguous()
    gathered = [torch.empty_like(constant) for _ in range(ranks)]
    torch.distributed.all_gather(gathered, constant)
    gathered[torch.distributed.get_rank()] = constant + ranks * (vectors - constant)
    return torch.cat(gathered)


def layer_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """LayerSync (arXiv 2510.12581): mean cosine of `(B, S, D)` student tokens with a deeper layer's, detached."""
    return (normalise(student) * normalise(teacher.detach())).sum(-1).mean()
