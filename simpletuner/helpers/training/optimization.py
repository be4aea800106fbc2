"""Optimizers, learning-rate schedules and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from simpletuner.configuration import Config

OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adafactor": torch.optim.Adafactor,
    "sgd": torch.optim.SGD,
}


def make_optimizer(config: Config, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The optimizer named in the configuration, from torch."""
    return OPTIMIZERS[config.optimizer](parameters, lr=config.learning_rate, **optimizer_options(config))


def optimizer_options(config: Config) -> dict[str, Any]:
    """What the configured optimizer is told besides its learning rate, as its parameter groups name it."""
    options: dict[str, Any] = {"weight_decay": config.adam_weight_decay}
    if config.optimizer not in ("adafactor", "sgd"):
        options |= {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}
    return options


def make_lr_scheduler(config: Config, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The learning-rate schedule over optimizer steps, for every parameter group alike."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def set_learning_rate(scheduler: LRScheduler, learning_rate: float) -> None:
    """Gives a schedule that was restored from a checkpoint the learning rate of this run's options."""
    if all(base == learning_rate for base in scheduler.base_lrs):
        return
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] *= learning_rate / base
        group["initial_lr"] = learning_rate
    scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)


def average_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Averages gradients over the ranks, in one message, for parameters that no distributed wrapper looks after."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(
    accelerator: Accelerator,
    parameters: Sequence[nn.Parameter],
    projector: Sequence[nn.Parameter],
    max_norm: float,
) -> dict[str, Tensor]:
    """Clips the model's gradient and, for itself, the projector's; 0 clips neither. Returns their norms, to be logged.

    For itself, because the model's may be sharded, and so that a projector with large gradients at the start doesn't
    slow the model down.
    """
    limit = math.inf if max_norm == 0 else max_norm
    norm: Any = accelerator.clip_grad_norm_(parameters, limit)
    norms = {"grad_norm": norm.full_tensor() if isinstance(norm, DTensor) else norm}
    if any(parameter.grad is not None for parameter in projector):
        norms["projector_grad_norm"] = torch.nn.utils.clip_grad_norm_(projector, limit)
    return norms


def forget(optimizer: AcceleratedOptimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Frees the optimizer's state of parameters that are trained no more; they stay in their group."""
    for parameter in parameters:
        optimizer.optimizer.state.pop(parameter, None)
        parameter.grad = None


@contextmanager
def without_group(optimizer: AcceleratedOptimizer, parameters: Sequence[nn.Parameter]) -> Iterator[dict[str, Any]]:
    """Takes the parameter group of `parameters` out of the optimizer for a while; yields its state by index.

    FSDP looks every parameter of the optimizer up in the model, which the projector isn't part of.
    """
    inner = optimizer.optimizer
    if not parameters:
        yield {}
        return
    position = next(i for i, group in enumerate(inner.param_groups) if group["params"][0] is parameters[0])
    group = inner.param_groups.pop(position)
    states = {str(i): inner.state.pop(p) for i, p in enumerate(parameters) if p in inner.state}
    try:
        yield states
    finally:
        inner.param_groups.insert(position, group)
        for index, state in states.items():
            inner.state[parameters[int(index)]] = state
