"""The alignment losses: pure functions of tensors, computed in fp32 (or fp64 where the input is).

Tokens are `(B, T, N, D)`: batch, frames, tokens a frame, width. The student carries the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Rows of a Gram matrix held at once, backward pass included; bounds the memory of the direct form at GRAM_ROWS · N
# floats a sample.
GRAM_ROWS = 1024


def normalise(tokens: Tensor) -> Tensor:
    """L2-normalises the last axis, in fp32 or better."""
    return F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)


def spatial_norm(tokens: Tensor, alpha: float) -> Tensor:
    """iREPA's normalisation of the teacher over space (arXiv 2512.10794), per channel and frame.

    `(y - alpha · mean over tokens) / (std over tokens + 1e-6)`, shapes kept.
    """
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
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

    Args:
        student: `(..., N, D)`.
        teacher: `(..., N, D')`; D' may differ from D.

    Returns:
        The mean over the leading axes, a scalar.
    """
    student, teacher = normalise(student).flatten(0, -3), normalise(teacher).flatten(0, -3)
    tokens = student.shape[-2]
    if tokens > 2 * student.shape[-1] and student.shape[-1] == teacher.shape[-1]:
        total = _gram_distance_by_features(student, teacher)
    else:
        total = _gram_distance_by_tokens(student, teacher)
    return total / (student.shape[0] * tokens * tokens)


def _gram_distance_by_tokens(student: Tensor, teacher: Tensor) -> Tensor:
    """`Σ ‖YYᵀ - HHᵀ‖²` over samples, a bounded number of rows at a time."""

    def part(y: Tensor, h: Tensor) -> Tensor:
        return (y @ student.transpose(1, 2) - h @ teacher.transpose(1, 2)).square().sum()

    rows = list(zip(student.split(GRAM_ROWS, 1), teacher.split(GRAM_ROWS, 1), strict=True))
    if len(rows) == 1:
        return part(*rows[0])
    return torch.stack([checkpoint(part, y, h, use_reentrant=False) for y, h in rows]).sum()


def _gram_distance_by_features(student: Tensor, teacher: Tensor) -> Tensor:
    """The same in D×D products, for N > 2 D.

    With A = Y - H and S = Y + H, `YYᵀ - HHᵀ = (ASᵀ + SAᵀ)/2`, hence `‖·‖² = (<AᵀA, SᵀS> + <AᵀS, SᵀA>)/2`. Unlike
    `‖YᵀY‖² + ‖HᵀH‖² - 2‖YᵀH‖²` this doesn't cancel when student and teacher nearly agree.
    """
    difference, total = student - teacher, student + teacher
    cross = difference.transpose(1, 2) @ total
    within = (difference.transpose(1, 2) @ difference) * (total.transpose(1, 2) @ total)
    return (within.sum() + (cross * cross.transpose(1, 2)).sum()) / 2


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
