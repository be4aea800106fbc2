"""Other names of options, as other trainers' configurations write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from simpletuner.configuration.fields import OptionInfo
from simpletuner.configuration.problems import Problem

_SWITCH = TypeAdapter(bool)


def alias_names(options: Iterable[OptionInfo]) -> list[str]:
    """All other names under which the options may be given."""
    return [alias.partition("=")[0] for option in options for alias in option.aliases]


def resolve_aliases(values: Mapping[str, Any], options: Iterable[OptionInfo]) -> tuple[dict[str, Any], list[Problem]]:
    """Rename the values given under an alias.

    An alias "name" stands for the option itself; "name=value" is a switch that, when true, gives the option that
    value, and when false its default (None). An alias that contradicts the option's own value is an error.
    """
    resolved = dict(values)
    problems = []
    for option in options:
        for alias in option.aliases:
            name, _, meaning = alias.partition("=")
            if name not in resolved:
                continue
            value = resolved.pop(name)
            if meaning and value is not None:
                try:
                    value = meaning if _SWITCH.validate_python(value) else None
                except ValidationError:
                    problems.append(Problem(name, f"{value!r} is neither true nor false", f"Use {option.name}."))
                    continue
            own = resolved.get(option.name)
            if value is not None and own is not None and own != value:
                message = f"contradicts {option.name} {own!r}: it stands for {value!r}"
                problems.append(Problem(name, message, f"Keep only {option.name}."))
            elif own is None:
                resolved[option.name] = value
    return resolved, problems
