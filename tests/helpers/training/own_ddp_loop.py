"""A distributed loop of one's own, the projector attached inside the wrapped model; writes what each rank saw.

With DDP as torch has it: no unused parameters are looked for, so a projector without a gradient would hang it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simpletuner.helpers.training.alignment.losses import manifold_loss, sample_manifold_loss
from simpletuner.helpers.training.crepa import CrepaRegularizer

STEPS = 40


def own_loop(mode: str, accelerator: Accelerator) -> list[str]:
    """For every step: whether there was a loss with a gradient, a measurement, or nothing."""
    torch.manual_seed(0)
    model = nn.Linear(6, 6)
    options = SimpleNamespace(
        crepa_enabled=True,
        crepa_feature_source="backbone",
        crepa_similarity_threshold=0.2,
        crepa_similarity_ema_decay=0.3,
        crepa_threshold_mode=mode,
    )
    repa = CrepaRegularizer(options, accelerator, 6).attach_to_model(model)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(accelerator.process_index)
    seen = []
    for step in range(STEPS):
        inputs = torch.randn(4, 16, 6, generator=generator)
        targets = torch.randn(4, 16, 6, generator=generator) if step >= 8 else inputs.roll(1, -1)
        hidden = wrapped(inputs)
        loss, logs = repa.add_loss(
            hidden.square().mean(), hidden if repa.wants_hidden_states() else None, frame_features=targets, step=step
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append("off" if not logs else "measured" if logs["crepa_cutoff"] else "on")
    return seen


def gathered_gradients(accelerator: Accelerator) -> float:
    """How far the averaged gradients of the sample manifold are from those of one process with all the samples."""
    ranks, rank = accelerator.num_processes, accelerator.process_index
    everything = torch.randn(ranks * 3, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(ranks * 3, 1, 5, 6, generator=torch.Generator().manual_seed(1))
    weight = torch.eye(6).requires_grad_()
    own = slice(3 * rank, 3 * rank + 3)
    (gradient,) = torch.autograd.grad(sample_manifold_loss(everything[own] @ weight, teacher[own]), weight)
    gradient = accelerator.reduce(gradient, "mean")

    def pooled(tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(tokens, dim=-1).mean((1, 2))[None]

    (expected,) = torch.autograd.grad(manifold_loss(pooled(everything @ weight), pooled(teacher)), weight)
    return float((gradient - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    folder, accelerator = Path(sys.argv[1]), Accelerator()
    report = {mode: own_loop(mode, accelerator) for mode in ("permanent", "recoverable")}
    error = gathered_gradients(accelerator)
    path = folder / f"rank-{accelerator.process_index}.json"
    path.write_text(json.dumps(report | {"gradient_error": error}))
    accelerator.wait_for_everyone()
    accelerator.end_training()
