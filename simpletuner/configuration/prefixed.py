"""Groups of options that have short names inside and carry a prefix outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, ClassVar, TypeVar

from pydantic import create_model
from pydantic.fields import FieldInfo

from simpletuner.configuration.aliases import alias_names, resolve_aliases
from simpletuner.configuration.fields import OnlyFor, OptionGroup, describe_all
from simpletuner.configuration.problems import has_errors
from simpletuner.configuration.validation import build


class PrefixedOptions(OptionGroup):
    """A group whose options carry a prefix outside of it.

    In help texts and dependencies ``{x}`` is the prefix and ``{encoder}`` the condition under which an encoder is
    the teacher. ``RENAMED`` and ``ALIASES`` are for options that a group names in its own way.
    """

    PREFIX: ClassVar[str]
    TITLE: ClassVar[str]
    RENAMED: ClassVar[Mapping[str, str]] = {}
    ALIASES: ClassVar[Mapping[str, Sequence[str]]] = {}
    ONLY_FOR: ClassVar[OnlyFor | None] = None
    ENCODER_IN_USE: ClassVar[str] = "{x}_enabled"

    @classmethod
    def key(cls, field: str) -> str:
        """The full name of an option of this group: ``key("warmup_steps")`` is ``crepa_warmup_steps``."""
        return f"{cls.PREFIX}_{cls.RENAMED.get(field, field.rstrip('_'))}"

    @classmethod
    def prefixed(cls, name: str, field: FieldInfo) -> FieldInfo:
        """The declaration of an option as it reads outside of the group."""
        copy = deepcopy(field)
        extra: Any = copy.json_schema_extra
        copy.description = cls._fill_in(copy.description or "")
        copy.json_schema_extra = {
            **extra,
            "group": cls.TITLE,
            "only_for": extra["only_for"] or cls.ONLY_FOR,
            "aliases": list(cls.ALIASES.get(name, ())),
            "depends_on": None if extra["depends_on"] is None else cls._fill_in(extra["depends_on"]),
        }
        return copy

    @classmethod
    def _fill_in(cls, text: str) -> str:
        return text.replace("{encoder}", cls.ENCODER_IN_USE).replace("{x}", cls.PREFIX)


T = TypeVar("T", bound=PrefixedOptions)


@cache
def keyed_model(group: type[PrefixedOptions]) -> type[OptionGroup]:
    """The same declarations under their full names, as ``config.json`` has them."""
    fields: dict[str, Any] = {
        group.key(name): (field.annotation, group.prefixed(name, field)) for name, field in group.model_fields.items()
    }
    return create_model(f"{group.__name__}Keys", __base__=OptionGroup, **fields)


def read_options(group: type[T], source: object) -> T:
    """The options of ``group`` from the attributes of any object: ``read_options(CrepaOptions, config).warmup_steps``.

    The attributes have the full names (``crepa_warmup_steps``); one that is missing or None means the default.
    Raises ``ValueError``, naming each option, for values of the wrong type or out of range, and for misspelt
    attributes that begin with the group's prefix.
    """
    model = keyed_model(group)
    options = describe_all(model)
    misspelt = [name for name in getattr(source, "__dict__", ()) if name.startswith(f"{group.PREFIX}_")]
    names = dict.fromkeys([*model.model_fields, *alias_names(options), *misspelt])
    given = {name: getattr(source, name) for name in names if getattr(source, name, None) is not None}
    values, contradictions = resolve_aliases(given, options)
    checked, invalid = build(model, values)
    problems = contradictions + invalid
    if has_errors(problems):
        raise ValueError("\n".join(str(problem) for problem in problems if problem.severity == "error"))
    return group.model_validate({field: getattr(checked, group.key(field)) for field in group.model_fields})
