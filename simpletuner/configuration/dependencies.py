"""Which options have an effect, given the others: the reading of ``depends_on``."""

from __future__ import annotations

from collections.abc import Mapping

from simpletuner.configuration.fields import OptionGroup, OptionInfo, describe_all
from simpletuner.configuration.problems import Problem, warning


def without_effect(values: OptionGroup) -> list[Problem]:
    """Warnings for options that were changed although the option that they depend on is off."""
    options = {info.name: info for info in describe_all(type(values))}
    defaults = type(values)()
    changed = [name for name in options if getattr(values, name) != getattr(defaults, name)]
    reasons = {name: unmet_dependency(name, values, options) for name in changed}
    return [
        warning(name, f"has no effect: {reason}", "Change that, or remove this option.")
        for name, reason in reasons.items()
        if reason is not None
    ]


def unmet_dependency(name: str, values: object, options: Mapping[str, OptionInfo]) -> str | None:
    """Why an option has no effect, such as "crepa_enabled is false"; None if it has one.

    ``values`` has the options as attributes. A dependency is met if one of its alternatives is on (true, non-zero, not
    empty, or one of the values named) and the option named there has an effect itself.
    """
    dependency = options[name].depends_on
    if dependency is None:
        return None
    unmet = [_unmet_alternative(alternative, values, options) for alternative in dependency.split(" or ")]
    reasons = [reason for reason in unmet if reason is not None]
    return " and ".join(reasons) if len(reasons) == len(unmet) else None


def _unmet_alternative(alternative: str, values: object, options: Mapping[str, OptionInfo]) -> str | None:
    name, _, allowed = alternative.partition("=")
    value = getattr(values, name)
    if allowed:
        is_on = value in allowed.split("|")
    elif options[name].default is None:
        is_on = value is not None and value != ""  # 0 is a value like any other where None is the default
    else:
        is_on = bool(value)
    if not is_on:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        return f"{name} is {'not set' if value is None else shown}"
    return unmet_dependency(name, values, options)
