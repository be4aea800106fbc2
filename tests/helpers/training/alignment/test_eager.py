"""A loss that is differentiated at once has the gradients that the backward pass would have given it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simpletuner.helpers.training.alignment.eager import differentiated


def loss_of(layer: nn.Module, target: Tensor) -> Any:
    """A mean over samples of how far a layer's output is from the target, and the mean output."""

    def function(rows: slice, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output = torch.stack([layer(tensor) for tensor in inputs]).mean(0)
        return (output - target[rows]).square().mean(), {"mean": output.detach().mean()}

    return function


@settings(deadline=None)
@given(
    samples=st.integers(1, 9), chunks=st.integers(1, 12), inputs=st.integers(1, 3), upstream=st.sampled_from([1.0, 3.0])
)
def test_gradients_are_those_of_the_backward_pass(samples: int, chunks: int, inputs: int, upstream: float) -> None:
    torch.manual_seed(0)
    layer, target = nn.Linear(4, 3).double(), torch.randn(samples, 5, 3).double()
    sources = [torch.randn(samples, 5, 4).double().requires_grad_() for _ in range(inputs)]
    states = [source.sin() for source in sources]
    plain, parts = loss_of(layer, target)(slice(0, samples), *states)
    wanted = [*sources, *layer.parameters()]
    expected = torch.autograd.grad(upstream * plain, wanted)
    loss, logs = differentiated(
        loss_of(layer, target), [source.sin() for source in sources], [*layer.parameters()], chunks=chunks
    )
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(logs["mean"], parts["mean"])
    torch.testing.assert_close(torch.autograd.grad(upstream * loss, wanted), expected)


def test_gradients_add_up_with_those_of_another_loss() -> None:
    layer, target = nn.Linear(4, 3), torch.randn(2, 5, 3)
    source = torch.randn(2, 5, 4, requires_grad=True)
    state = 2 * source
    loss, _ = differentiated(loss_of(layer, target), [state], [*layer.parameters()])
    (loss + state.sum()).backward()
    assert source.grad is not None
    gradient = source.grad.clone()
    source.grad = None
    plain, _ = loss_of(layer, target)(slice(0, 2), state_again := 2 * source)
    (plain + state_again.sum()).backward()
    torch.testing.assert_close(gradient, source.grad)


def test_parameters_that_share_a_gradient_add_up_their_own() -> None:
    """Autograd may give both of these one and the same tensor."""
    one, other = (torch.zeros(4, requires_grad=True) for _ in range(2))
    states, target = torch.randn(3, 5, 4), torch.randn(3, 5, 4)

    def function(rows: slice, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (tokens + (one + other) - target[rows]).square().mean(), {}

    expected = torch.autograd.grad(function(slice(0, 3), states)[0], [one, other])
    loss, _ = differentiated(function, [states], [one, other], chunks=3)
    torch.testing.assert_close(torch.autograd.grad(loss, [one, other]), expected)


def test_it_can_be_counted() -> None:
    """torch's counter hooks into gradients in a way that not every call of autograd bears."""
    layer, target = nn.Linear(4, 3), torch.randn(2, 5, 3)
    source = torch.randn(2, 5, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        differentiated(loss_of(layer, target), [source], [*layer.parameters()])[0].backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 4 * 3


def test_without_gradients_there_is_only_the_value() -> None:
    layer, target = nn.Linear(4, 3), torch.randn(2, 5, 3)
    states = torch.randn(2, 5, 4)
    with torch.no_grad():
        loss, _ = differentiated(loss_of(layer, target), [states], [*layer.parameters()], chunks=2)
    assert not loss.requires_grad
    loss, _ = differentiated(loss_of(layer.requires_grad_(False), target), [states], [*layer.parameters()])
    assert not loss.requires_grad


def test_an_input_that_nothing_leads_to_gets_no_gradient() -> None:
    """As hidden states have none where only the projector is trained."""
    layer, target = nn.Linear(4, 3), torch.randn(2, 5, 3)
    states = torch.randn(2, 5, 4)
    loss, _ = differentiated(loss_of(layer, target), [states], [*layer.parameters()])
    loss.backward()
    assert states.grad is None and layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_too_small_for_half_precision_survive_a_loss_scale(dtype: torch.dtype) -> None:
    """In fp16 they are beyond its range until the scaler's factor, 65536 at first, has multiplied them."""
    source = torch.ones(1, 4, dtype=dtype, requires_grad=True)
    state = source * 1

    def function(rows: slice, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return 1e-9 * tokens.float().sum(), {}

    loss, _ = differentiated(function, [state])
    (65536.0 * loss).backward()
    assert source.grad is not None and source.grad.dtype is dtype
    torch.testing.assert_close(source.grad.float(), torch.full((1, 4), 6.5536e-5), rtol=1e-2, atol=0)


def test_only_gradients_wait_for_the_backward_pass() -> None:
    layer, target = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 3)), torch.randn(8, 5, 3)
    states = torch.randn(8, 5, 4, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss, _ = differentiated(loss_of(layer, target), [states], [*layer.parameters()], chunks=8)
    held = [tensor for tensor in kept if tensor.shape[:1] != (1,)]
    assert {tuple(tensor.shape) for tensor in kept[-5:]} == {(8, 5, 4), (64, 4), (64,), (3, 64), (3,)}
    assert max(tensor.numel() for tensor in held) <= 8 * 5 * 64 / 8 * 2
    loss.backward()
