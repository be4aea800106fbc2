"""Gradients made where the loss is, so that nothing of its graph is held until the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Parts = dict[str, Tensor]
CHUNKS = 8  # parts of a batch: more would save little memory, and cost a GPU more launches


def differentiated(
    function: Callable[..., tuple[Tensor, Parts]],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor] = (),
    *,
    chunks: int = 1,
) -> tuple[Tensor, Parts]:
    """A scalar loss that is a mean over samples, with its gradient already made.

    An auxiliary loss stands between the model's forward and backward passes, where memory is fullest. Of one that is
    differentiated at once, a few samples at a time, only a gradient as large as its inputs stays until the backward
    pass, which scales it; otherwise a dozen intermediate results would. Under `torch.no_grad` the loss has no
    gradient, as ever.

    Args:
        function: from the samples' slice and the inputs' rows in it, cut off from the graph, to the mean loss of
            these samples and other mean scalars.
        inputs: `(B, ...)`, to which a graph may lead.
        parameters: what else `function` uses and is trained.
        chunks: how many parts the samples are taken in.

    Returns:
        The loss and the other scalars, over all samples.
    """
    count = len(inputs[0])
    size = -(-count // chunks)
    leading = [tensor for tensor in inputs if tensor.requires_grad]
    trained = [tensor for tensor in parameters if tensor.requires_grad]
    differentiates = torch.is_grad_enabled() and bool(leading or trained)
    gradients = (
        [torch.empty_like(tensor, dtype=_gradient_dtype(tensor)) for tensor in leading] if differentiates else []
    )
    sums: list[Tensor] | None = None
    losses, parts = [], list[Parts]()
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        share = (rows.stop - rows.start) / count
        leaves = [_leaf(tensor[rows], tensor.requires_grad and differentiates) for tensor in inputs]
        loss, part = function(rows, *leaves)
        loss = loss * share
        if differentiates:
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(loss, [*wanted, *trained], allow_unused=True, materialize_grads=True)
            for gradient, rows_gradient in zip(gradients, found[: len(wanted)], strict=True):
                gradient[rows] = rows_gradient
            added = found[len(wanted) :]
            # Not in place: autograd may give two parameters one and the same tensor.
            sums = [*added] if sums is None else [total + more for total, more in zip(sums, added, strict=True)]
        losses.append(loss.detach())
        parts.append({name: value * share for name, value in part.items()})
    total = torch.stack(losses).sum()
    if differentiates:
        targets = [*leading, *trained]
        total = _Scaled.apply(total, len(targets), *targets, *gradients, *(sums or []))
    return total, {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def _leaf(tensor: Tensor, requires_grad: bool) -> Tensor:
    leaf = tensor.detach().to(_gradient_dtype(tensor)).requires_grad_(requires_grad)
    return leaf.view_as(leaf)  # hooks for several gradients, as torch's FlopCounterMode sets, refuse a leaf itself


def _gradient_dtype(tensor: Tensor) -> torch.dtype:
    # In fp16 a gradient that no loss scale has multiplied yet would vanish.
    return torch.float32 if tensor.dtype is torch.float16 else tensor.dtype


class _Scaled(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        ctx.dtypes = [tensor.dtype for tensor in tensors[:count]]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        scaled = [(gradient * upstream).to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (None, None, *scaled, *(None for _ in gradients))
