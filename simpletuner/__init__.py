"""Representation alignment for diffusion models: a trainer, and regularizers for any training loop.

The names below are imported when they are first used, so that `import simpletuner` needs neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpletuner.configuration import Config
    from simpletuner.helpers.models.capture import capture_hidden_states
    from simpletuner.helpers.training.alignment.geometry import TokenGrid
    from simpletuner.helpers.training.alignment.teachers import make_teacher
    from simpletuner.helpers.training.crepa import CrepaRegularizer, UrepaRegularizer
    from simpletuner.helpers.training.layersync import LayerSyncRegularizer
    from simpletuner.helpers.training.trainer import Trainer

_HOMES = {
    "Config": "simpletuner.configuration",
    "CrepaRegularizer": "simpletuner.helpers.training.crepa",
    "LayerSyncRegularizer": "simpletuner.helpers.training.layersync",
    "TokenGrid": "simpletuner.helpers.training.alignment.geometry",
    "Trainer": "simpletuner.helpers.training.trainer",
    "UrepaRegularizer": "simpletuner.helpers.training.crepa",
    "capture_hidden_states": "simpletuner.helpers.models.capture",
    "make_teacher": "simpletuner.helpers.training.alignment.teachers",
}

__all__ = [
    "Config",
    "CrepaRegularizer",
    "LayerSyncRegularizer",
    "TokenGrid",
    "Trainer",
    "UrepaRegularizer",
    "capture_hidden_states",
    "make_teacher",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simpletuner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
