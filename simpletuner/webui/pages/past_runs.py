"""What runs were started with: their configurations, how they differ, and the methods that aligned them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from simpletuner.configuration.aliases import resolve_aliases
from simpletuner.configuration.config import Config
from simpletuner.configuration.fields import OptionInfo, describe_all
from simpletuner.configuration.loading import plain_names, valid_part
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.runs import Run, RunError, run_config
from simpletuner.webui.secrets import hide


@dataclass(frozen=True)
class Difference:
    """An option in which configurations differ: its value in each, in their order; `group` as of `OptionInfo`."""

    option: str
    label: str
    group: str | None
    values: tuple[Any, ...]


def run_values(run: Run) -> dict[str, Any]:
    """What the newest start of a run was configured with, as its file has it; empty where that can't be read."""
    try:
        return run_config(run)
    except RunError:
        return {}


def effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every option's value, defaults included, as the trainer takes it; what it doesn't know stays as it is written."""
    config, _ = valid_part(values)
    written, _ = resolve_aliases(plain_names(values), _options())
    return written | config.model_dump(mode="json")


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The options in which these values of configurations differ, in their usual order; secrets are masked."""
    every = [effective(values) for values in configurations]
    shown = [hide(values) for values in every]
    known = {info.name: (info.label, info.group) for info in _options()}
    found = []
    for name in dict.fromkeys([*known, *(name for values in every for name in values)]):
        if any(values.get(name) != every[0].get(name) for values in every[1:]):
            label, group = known.get(name, (name, None))
            found.append(Difference(name, label, group, tuple(values.get(name) for values in shown)))
    return found


def methods_of(values: Mapping[str, Any]) -> str:
    """What aligns a training, such as "REPA + LayerSync"; "" for a baseline."""
    family = FAMILIES.get(str(values.get("model_family")))
    aligned = "REPA" if family is not None and family.media == "image" else "CREPA"
    names = {"crepa_enabled": aligned, "urepa_enabled": "U-REPA", "irepa_enabled": "iREPA"}
    names |= {"layersync_enabled": "LayerSync"}
    return " + ".join(method for option, method in names.items() if values.get(option) is True)


@cache
def _options() -> list[OptionInfo]:
    return describe_all(Config)
