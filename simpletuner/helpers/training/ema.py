"""An exponential moving average of the trained weights, through diffusers' `EMAModel`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn

from simpletuner.configuration import Config


def make_ema(config: Config, parameters: Sequence[nn.Parameter]) -> EMAModel | None:
    """The average of the trainable parameters, or None where `use_ema` is off."""
    if not config.use_ema:
        return None
    return EMAModel(parameters, decay=config.ema_decay, foreach=True)


@contextmanager
def averaged_weights(ema: EMAModel | None, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Puts the averaged weights into the model for a while; does nothing without an average."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)
