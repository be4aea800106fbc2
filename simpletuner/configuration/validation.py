"""From raw values to a checked model, with a problem for everything that does not fit."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from simpletuner.configuration.aliases import alias_names
from simpletuner.configuration.fields import OptionInfo, describe, describe_all, union_members
from simpletuner.configuration.problems import Problem, warning
from simpletuner.configuration.simpletuner_names import SIMPLETUNER_NAMES

M = TypeVar("M", bound=BaseModel)


def build(
    model: type[M], values: Mapping[str, Any], known_elsewhere: frozenset[str] = SIMPLETUNER_NAMES
) -> tuple[M, list[Problem]]:
    """Make a model of the values that are valid; every other value gives a problem and is left at its default.

    An unknown name is an error with the nearest known one; if it is ``known_elsewhere`` (an option of SimpleTuner
    that is not implemented here) it is a warning.
    """
    # pydantic has no place for a name that is no Unicode, such as half a surrogate pair.
    values = {name.encode(errors="backslashreplace").decode(): value for name, value in values.items()}
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        places = dict.fromkeys(_place(model, item["loc"]) for item in error.errors())
    problems = [_problem(model, place, values, known_elsewhere) for place in places]
    wrong = {place[0] for place in places}
    return model.model_validate({name: value for name, value in values.items() if name not in wrong}), problems


def parse_text(field: FieldInfo, text: str) -> Any:
    """A value of the field's type from the text of the command line; the text itself where it does not parse.

    "none" is no value where the option has none by default; a list is written "a,b".
    """
    info = describe("", field)
    if info.optional and text.lower() in ("none", "null"):
        return None
    if info.type == "list":
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        value = TypeAdapter[Any](field.rebuild_annotation()).validate_python(text, strict=False)
    except ValidationError:
        return text
    return text if isinstance(value, int) and abs(value) >= 2**64 else value  # as in a file: no option takes it


def unknown_name(name: str, known: Iterable[str], known_elsewhere: frozenset[str]) -> Problem:
    """The problem of a name that no option has."""
    if name.rpartition(".")[2] in known_elsewhere:
        return warning(name, "is an option of SimpleTuner that this trainer does not implement", "It is ignored.")
    return Problem(name, "is no option", nearest(name, known) or "Run `simpletuner options` for the list.")


def nearest(word: object, known: Iterable[str]) -> str:
    """A question naming the known word that is most like this one, or nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f'Did you mean "{close[0]}"?' if close else ""


def _place(model: type[BaseModel], location: Sequence[Any]) -> tuple[str, ...]:
    """The option's name, and within a nested group its name there; pydantic's location goes on into unions."""
    name = str(location[0])
    nested = _nested(model, name)
    return (name, *_place(nested, location[1:])) if nested is not None and len(location) > 1 else (name,)


def _nested(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    members = union_members(field.annotation) if field is not None else []
    return next((member for member in members if isinstance(member, type) and issubclass(member, BaseModel)), None)


def _problem(
    model: type[BaseModel], place: tuple[str, ...], values: Mapping[str, Any], known_elsewhere: frozenset[str]
) -> Problem:
    owner, value = model, values[place[0]]
    for outer, inner in pairwise(place):
        owner, value = _nested(owner, outer) or owner, value[inner]
    name = ".".join(place)
    field = owner.model_fields.get(place[-1])
    if field is None:
        options = describe_all(owner)
        known = [*owner.model_fields, *alias_names(options)]
        return unknown_name(name, known, known_elsewhere)
    info = describe(name, field)
    shown = json.dumps(value, default=str)
    return Problem(name, f"{shown} is not {info.expectation()}", _mend(field, info, value))


def _mend(field: FieldInfo, info: OptionInfo, value: Any) -> str:
    if isinstance(value, str):
        meant = parse_text(field, value)
        if info.type == "list":
            return f"Write a list: {json.dumps(meant)}."
        if isinstance(meant, bool):
            return f"Write {json.dumps(meant)}, without quotes."
        if meant != value:
            return "Write it without quotes."
    if info.choices is not None and not isinstance(value, list):
        return nearest(value, map(str, info.choices)) or "Use one of these."
    return f"Correct it, or remove it for the default ({json.dumps(info.default)})."
