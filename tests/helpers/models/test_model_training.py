"""A few real steps of every family with its alignment loss on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from simpletuner.helpers.models.common import ModelFoundation
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import prepared

TAP = 1


def aligned(
    name: str, make: MakeFoundation, teacher: Path, model_type: str, *, checkpointing: bool = False
) -> ModelFoundation:
    """A loaded foundation whose block 1, or mid-block, is aligned with the tiny teacher."""
    prefix = CASES[name].prefix
    options: dict[str, Any] = {f"{prefix}_enabled": True, f"{prefix}_lambda": 0.5}
    if prefix == "urepa":
        options |= {"urepa_model": str(teacher), "urepa_encoder_image_size": 56}
    else:
        options |= {"crepa_encoder": str(teacher), "crepa_encoder_image_size": 56, "crepa_block_index": TAP}
    torch.manual_seed(0)  # adapters and projector are drawn from it
    foundation = make(name, model_type=model_type, lora_rank=4, gradient_checkpointing=checkpointing, **options)
    foundation.load_model()
    return foundation


def batch_of(foundation: ModelFoundation, name: str) -> dict[str, Any]:
    _, height, width = CASES[name].pixels
    seen = len(foundation.frame_indices(CASES[name].latents[-3])) if CASES[name].is_video else 1
    generator = torch.Generator().manual_seed(0)
    return prepared(foundation, name, pixels=torch.rand(2, seen, 3, height, width, generator=generator))


def losses(foundation: ModelFoundation, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The whole loss, the alignment's share of it, and the logs."""
    output = foundation.model_predict(batch)
    base = foundation.loss(output, batch)
    loss, logs = foundation.auxiliary_loss(output, batch, base)
    return loss, loss - base, logs


def projector_of(foundation: ModelFoundation) -> nn.Module:
    assert foundation.alignment is not None and foundation.alignment.projector is not None
    return foundation.alignment.projector


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("model_type", ["lora", "full"])
@pytest.mark.parametrize("name", CASES)
def test_three_steps_on_one_batch_lower_the_loss(
    name: str, model_type: str, checkpointing: bool, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    foundation = aligned(name, make_foundation, tiny_teacher, model_type, checkpointing=checkpointing)
    batch = batch_of(foundation, name)
    parameters = [*foundation.trainable_parameters(), *projector_of(foundation).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    history, bases = [], []
    for _ in range(3):
        loss, share, logs = losses(foundation, batch)
        bases.append((loss - share).item())
        loss.backward()
        assert all(value.isfinite() for value in logs.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in projector_of(foundation).parameters())
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    assert history[2] < history[1] < history[0], history
    assert bases[2] < bases[0], "the model's own loss did not fall: " + str(bases)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.prefix == "crepa"])
def test_the_alignment_trains_adapters_up_to_the_tap_and_none_behind_it(
    name: str, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    foundation = aligned(name, make_foundation, tiny_teacher, "lora")
    _, share, _ = losses(foundation, batch_of(foundation, name))
    share.backward()
    for index, block in enumerate(foundation.blocks):
        gradients = [p.grad for p in block.parameters() if p.requires_grad]
        moved = any(gradient is not None and gradient.any() for gradient in gradients)
        assert moved == (index <= TAP), f"block {index}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.prefix == "urepa"])
def test_the_alignment_trains_a_unets_adapters_up_to_its_middle(
    name: str, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    foundation = aligned(name, make_foundation, tiny_teacher, "lora")
    _, share, _ = losses(foundation, batch_of(foundation, name))
    share.backward()
    moved = {
        part.partition(".")[0]
        for part, parameter in foundation.unwrap_model().named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {"down_blocks", "mid_block"}


@pytest.mark.parametrize("name", CASES)
def test_checkpointing_changes_no_gradient(name: str, make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    """Mistake 19: the blocks run twice, and the tokens of the first time are the ones that count."""
    gradients = []
    for checkpointing in (False, True):
        foundation = aligned(name, make_foundation, tiny_teacher, "lora", checkpointing=checkpointing)
        loss, _, _ = losses(foundation, batch_of(foundation, name))
        loss.backward()
        gradients.append([p.grad for p in foundation.trainable_parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
