"""Declaring an option, and reading a declaration back as plain facts.

An option is a pydantic field made by :func:`option`. The CLI, the checks, the WebUI and the tables of the
documentation read it through :class:`OptionInfo`, so nothing about an option is written down twice.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

# How words are written that are no plain words.
SPELLINGS = {"vae": "VAE", "ema": "EMA", "lora": "LoRA", "snr": "SNR", "tae": "tiny autoencoder", "id": "name"}
OnlyFor = Literal["video", "transformer", "unet"]
TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}


class OptionGroup(BaseModel):
    """Base of every group of options: strict types, no unknown keys, and ``None`` stands for the default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _none_is_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if value is not None}
        return values


def option(
    default: Any,
    *,
    help: str,
    tab: str,
    section: str,
    label: str | None = None,
    part: str | None = None,
    group: str | None = None,
    depends_on: str | None = None,
    only_for: OnlyFor | None = None,
    aliases: Sequence[str] = (),
    required: bool = False,
    example: str | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    min_length: int | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare one option; its type and its choices come from the annotation.

    ``depends_on`` names the option that must be on for this one to have an effect: ``"use_ema"`` (true, non-zero,
    not empty), ``"lr_scheduler=cosine|linear"`` (one of these values), or several of them joined by ``" or "``.
    ``label`` is what forms call it, where that isn't just its name; ``part`` is the heading under which it stands in
    a group of many. ``required`` marks an option whose empty default is not enough for a run (see ``checks``).
    ``only_for`` is the kind of model that it is for, if not for all. ``example`` shows the form of a text that has a
    ``pattern``, or of a list of numbers.
    """
    extra: Any = {
        "tab": tab,
        "section": section,
        "label": label,
        "part": part,
        "group": group,
        "depends_on": depends_on,
        "only_for": only_for,
        "aliases": list(aliases),
        "required": required,
        "example": example,
    }
    constraints: dict[str, Any] = {
        "ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length, "pattern": pattern
    }  # fmt: skip
    given = {name: value for name, value in constraints.items() if value is not None}
    return Field(default=default, description=help, json_schema_extra=extra, **given)


@dataclass(frozen=True)
class OptionInfo:
    """The facts of one option, ready for JSON.

    ``type`` is boolean, integer, number, string, list or object; ``choices`` are the only values allowed (of the
    items, for a list); ``keywords`` are words accepted besides a value of the type, such as "auto".
    """

    name: str
    label: str
    type: str
    default: Any
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    exclusive_maximum: bool
    choices: list[Any] | None
    keywords: list[str]
    optional: bool
    required: bool
    help: str
    depends_on: str | None
    only_for: OnlyFor | None
    tab: str
    section: str
    group: str | None
    part: str | None
    aliases: list[str]
    example: str | None

    def expectation(self) -> str:
        """What a value must be, in words: "a number of at least 0 and at most 1"."""
        if self.type == "object":
            return "an object of its own options"
        if self.choices is not None:
            listed = ", ".join(map(str, self.choices))
            return f"a list of: {listed}" if self.type == "list" else f"one of: {listed}"
        if self.example is not None:
            return f"a {'list' if self.type == 'list' else 'text'} such as {self.example}"
        words = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a text"}
        return words.get(self.type, "a list of texts") + self._range() + "".join(f', or "{w}"' for w in self.keywords)

    def _range(self) -> str:
        parts = []
        if self.minimum is not None:
            parts.append(f"{'more than' if self.exclusive_minimum else 'at least'} {_plain(self.minimum)}")
        if self.maximum is not None:
            parts.append(f"{'less than' if self.exclusive_maximum else 'at most'} {_plain(self.maximum)}")
        return " of " + " and ".join(parts) if parts else ""


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def union_members(annotation: Any) -> list[Any]:
    """The members of ``A | B | None``; a plain type is its own only member."""
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]


def describe(name: str, field: FieldInfo) -> OptionInfo:
    """Read the facts of one option from its declaration."""
    members = union_members(field.annotation)
    metadata = list(field.metadata)
    kind: str | None = None
    words: list[Any] = []
    for member in members:
        if get_origin(member) is Annotated:
            member, *inner = get_args(member)
            metadata += [part for item in inner for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        if get_origin(member) is Literal:
            words += get_args(member)
        elif get_origin(member) is list:
            kind = "list"
            (item,) = get_args(member)
            words += get_args(item) if get_origin(item) is Literal else ()
        elif isinstance(member, type) and issubclass(member, BaseModel):
            kind = "object"
        elif member in TYPE_NAMES:
            kind = TYPE_NAMES[member]
    bounds = dict(_bounds(metadata))
    only_words = kind is None or kind == "list"
    extra: Any = field.json_schema_extra
    default = field.get_default(call_default_factory=True, validated_data={})
    return OptionInfo(
        name=name,
        label=_label(name, extra),
        type="string" if kind is None else kind,
        default=default.model_dump() if isinstance(default, BaseModel) else default,
        minimum=bounds.get("ge", bounds.get("gt")),
        maximum=bounds.get("le", bounds.get("lt")),
        exclusive_minimum="gt" in bounds,
        exclusive_maximum="lt" in bounds,
        choices=words if only_words and words else None,
        keywords=[] if only_words else words,
        optional=type(None) in members,
        help=field.description or "",
        **{fact: value for fact, value in extra.items() if fact != "label"},
    )


def _label(name: str, extra: Mapping[str, Any]) -> str:
    """The label as declared, or else the name as a person would write it, without the prefix of its group."""
    if extra["label"] is not None:
        return str(extra["label"])
    own = name.partition("_")[2] if extra["group"] is not None else name
    words = [SPELLINGS.get(word, word) for word in own.split("_")]
    return words[0][0].upper() + " ".join(words)[1:] if name else ""


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, float]]:
    for item in metadata:
        for bound in ("ge", "gt", "le", "lt"):
            value = getattr(item, bound, None)
            if value is not None:
                yield bound, value


def describe_all(model: type[BaseModel]) -> list[OptionInfo]:
    """The facts of every option of a group or of the whole configuration, in the order of declaration."""
    return [describe(name, field) for name, field in model.model_fields.items()]


Place = tuple[str, str, str | None]
"""Tab, section and group."""


def by_place(options: Sequence[OptionInfo]) -> dict[Place, list[OptionInfo]]:
    """The options under the tab, section and group where people look for them, in the order of declaration."""
    tabs = list(dict.fromkeys(option.tab for option in options))
    places: dict[Place, list[OptionInfo]] = {}
    for option in sorted(options, key=lambda option: tabs.index(option.tab)):
        places.setdefault((option.tab, option.section, option.group), []).append(option)
    return places
