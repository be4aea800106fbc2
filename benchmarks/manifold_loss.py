"""What the manifold loss costs, forward and backward, beside the plain one that builds N×N matrices for all samples.

    python benchmarks/manifold_loss.py

Each ratio is plain over ours: above 1 we are quicker or smaller. The floors count multiply-adds, and bytes of tensors;
the plain loss also passes over its N×N matrices some ten times, which is why the measured times may be better.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial

import torch
from figures import Figure, interleaved, median, median_ratio, run_alone
from memory import mebibytes, peak_memory
from torch import Tensor

from simpletuner.helpers.training.alignment.losses import ELEMENTS, GRAM_ROWS, manifold_loss, normalise, token_cosine

SAMPLES = 4
# Tokens and width: the largest DINOv2 at 518 pixels, a large map of a narrow UNet, a small one, and one so small that
# calls cost more than products.
SHAPES = [(1369, 1536), (4096, 384), (1024, 128), (64, 64)]
NEVER_SLOWER = 1 / 1.05
QUICKER, SMALLER = 3.0, 5.0  # where N >= 4 D
COMPILED_SHAPE = (256, 768)
MANIFOLD_WEIGHT = 3.0  # the default of `urepa_manifold_weight`

Loss = Callable[[Tensor, Tensor], Tensor]


def measure(device: torch.device) -> list[Figure]:
    figures = []
    for tokens, width in SHAPES:
        figures += _against_plain(tokens, width, torch.float32, device)
        if device.type == "cuda":
            figures += _against_plain(tokens, width, torch.bfloat16, device)
            figures += _compiled(manifold_loss, f"manifold N {tokens} D {width}", (SAMPLES, tokens, width), device)
    tokens, width = COMPILED_SHAPE
    name = f"token cosine + manifold N {tokens} D {width}"
    return [*figures, *_compiled(_objective, name, (SAMPLES, 1, tokens, width), device)]


def plain_manifold(student: Tensor, teacher: Tensor) -> Tensor:
    """As it is written in the paper, in fp32."""
    y, h = normalise(student), normalise(teacher)
    return (y @ y.mT - h @ h.mT).square().mean()


def _objective(student: Tensor, teacher: Tensor) -> Tensor:
    """U-REPA's, of the plain losses."""
    return MANIFOLD_WEIGHT * manifold_loss(student, teacher) - token_cosine(student, teacher).mean()


def _against_plain(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Figure]:
    inputs = _inputs((SAMPLES, tokens, width), dtype, device)
    plain, ours = (partial(_step, loss, *inputs) for loss in (plain_manifold, manifold_loss))
    _check_equal(plain(), ours())
    seconds = interleaved({"plain": plain, "ours": ours}, repeats=5 if tokens > 1024 else 15, device=device, warmups=0)
    bytes_plain, bytes_ours = peak_memory(plain, device), peak_memory(ours, device)
    many = tokens >= 4 * width
    name = f"N {tokens} D {width}" + ("" if dtype == torch.float32 else ", bf16 tokens")
    return [
        Figure(
            f"manifold, time, {name}",
            median_ratio(seconds, "plain", "ours"),
            at_least=QUICKER if many else NEVER_SLOWER,
            floor=_multiply_adds_ratio(tokens, width),
            note=f"{median(seconds['ours']) * 1e3:.3g} ms, plain {median(seconds['plain']) * 1e3:.3g} ms",
        ),
        Figure(
            f"manifold, peak memory, {name}",
            bytes_plain / bytes_ours,
            at_least=SMALLER if many else None,
            floor=_bytes_ratio(tokens, width),
            note=f"{mebibytes(bytes_ours)}, plain {mebibytes(bytes_plain)}",
        ),
    ]


def _compiled(loss: Loss, name: str, shape: tuple[int, ...], device: torch.device) -> list[Figure]:
    """Whether `torch.compile` pays; nothing where there is no compiler."""
    if not any(shutil.which(command) for command in (os.environ.get("CXX", "g++"), "clang++")):
        return []
    inputs = _inputs(shape, torch.float32, device)
    eager, compiled = partial(_step, loss, *inputs), partial(_step, torch.compile(loss, fullgraph=True), *inputs)
    _check_equal(eager(), compiled())
    seconds = interleaved({"eager": eager, "compiled": compiled}, repeats=30, device=device)
    note = f"{median(seconds['compiled']) * 1e3:.3g} ms, eager {median(seconds['eager']) * 1e3:.3g} ms"
    return [Figure(f"{name}, compiled, time", median_ratio(seconds, "eager", "compiled"), note=note)]


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    return student.requires_grad_(), teacher


def _step(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    return gradient


def _check_equal(expected: Tensor, got: Tensor) -> None:
    """A quick loss that is wrong is no gain. Calling both warms them up as well."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-2
    error = (expected.float() - got.float()).norm() / expected.float().norm()
    if error > tolerance:
        raise AssertionError(f"The gradients differ by {error.item():.1e}, relative to their norm.")


def _multiply_adds_ratio(tokens: int, width: int) -> float:
    """Of both passes: the plain loss has two N×N products in each; see `manifold_loss` for ours."""
    return 4 * tokens**2 * width / min(2 * tokens**2 * width, 5 * tokens * width**2)


def _bytes_ratio(tokens: int, width: int) -> float:
    """Of tensors at the peak.

    The plain loss's is in the backward pass of the square: five tensors of N×N, and the normalised student. Ours is
    either in the forward pass (the gradient, three tensors of the samples at once, and products) or at the end (the
    gradient before and after it is scaled).
    """
    by_features = 2 * tokens > 5 * width
    block = 0 if by_features else min(tokens, GRAM_ROWS) ** 2
    at_once = min(SAMPLES, max(1, ELEMENTS // max(tokens * width, block)))
    products = 4 * width**2 if by_features else 2 * block
    forward = SAMPLES * tokens * width + at_once * (3 * tokens * width + products)
    return SAMPLES * (5 * tokens**2 + tokens * width) / max(forward, 2 * SAMPLES * tokens * width)


if __name__ == "__main__":
    run_alone(measure, __doc__)
