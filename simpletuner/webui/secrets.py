"""Keys and passwords never leave the server: they are hidden in values, and blacked out in texts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import zip_longest
from typing import Any

from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions

MASK = "••••••••"

_WORDS = (
    r"tokens?|secrets?|passwords?|passwd|passphrase|credentials?|authorization|bearer|api_?keys?|access_?keys?"
    r"|private_?keys?|secret_?keys?|account_?keys?|encryption_?keys?|connection_?string"
)
_SECRET = re.compile(rf"(?:^|_)(?:{_WORDS})(?:_|$)")
# A number or a choice, in the names that other trainers use for tokens of a text.
_COUNT = re.compile(r"(?:^|_)(?:max|min|num|n|new)_(?:\w+_)?tokens?$")
_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^\s/@:]*:[^\s/@]+@")
# "hub_token": "...", WANDB_API_KEY=..., --hub_token ..., ?token=...
_ASSIGNED = re.compile(
    # Names are bounded, and begin at a word: a long one, as of data in a log, must not take the square of its length.
    r"(?P<name>(?<![\w-])[\w-]{0,100}?"
    r"(?:token|secret|password|passwd|passphrase|credential|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"[\w-]{0,100}+)(?P<sign>['\"]?\s*[=:]\s*|\s+)(?P<quote>['\"]?)(?P<value>[^\s'\",;&}\])]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?i)\b(?P<kind>bearer|basic)(?P<space>\s+)[A-Za-z0-9._~+/=-]{8,}")
# How the keys of a few services look.
_KNOWN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16})\b")
_LEAST_LENGTH = 6  # of an environment variable's value: shorter ones stand in too many innocent places


def hide(values: Any) -> Any:
    """A copy in which every secret is :data:`MASK`: of keys that look like one, and of URLs with a password."""
    return _hidden(values, secret=False)


def restore(values: Any, original: Any) -> Any:
    """A copy in which every :data:`MASK` is what ``original`` has in its place; without one, it is left out.

    Entries of lists belong together by their ``id``, or else by their position.
    """
    if isinstance(values, Mapping):
        before = original if isinstance(original, Mapping) else {}
        restored = {key: restore(value, before.get(key, MASK)) for key, value in values.items()}
        return {key: value for key, value in restored.items() if not _masked(value)}
    if isinstance(values, list):
        pairs = zip(values, _counterparts(values, original), strict=True)
        return [item for item in (restore(value, before) for value, before in pairs) if not _masked(item)]
    return original if _masked(values) else values


def redact(text: str) -> str:
    """The text, in which :data:`MASK` stands for secrets.

    These are the values of environment variables whose names look secret, what is assigned to such a name
    ("api_key=..."), passwords in URLs, and what looks like the key of a well-known service.
    """
    for value in _secrets_of_environment():
        text = text.replace(value, MASK)
    text = _URL.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\g<kind>\g<space>{MASK}", text)
    text = _ASSIGNED.sub(_redacted, text)
    return _KNOWN.sub(MASK, text)


def looks_secret(name: str) -> bool:
    """Whether what has this name, an option or an environment variable, is likely a secret."""
    plain = _words(name)
    return bool(_SECRET.search(plain)) and not _COUNT.search(plain) and plain not in _known_options()


def _hidden(values: Any, *, secret: bool) -> Any:
    if isinstance(values, Mapping):
        return {key: _hidden(value, secret=secret or looks_secret(str(key))) for key, value in values.items()}
    if isinstance(values, list):
        return [_hidden(value, secret=secret) for value in values]
    if isinstance(values, str) and values:
        return MASK if secret or _URL.search(values) or _KNOWN.search(values) else values
    return MASK if secret and values is not None and not isinstance(values, (str, bool)) else values


def _masked(value: Any) -> bool:
    return isinstance(value, str) and value == MASK


def _counterparts(values: list[Any], original: Any) -> Iterator[Any]:
    """What stood in the place of each item; MASK for nothing."""
    before = original if isinstance(original, list) else []
    named = {_name_of(item): item for item in reversed(before)}  # of those of one name, the first
    for value, same_place in zip_longest(values, before[: len(values)], fillvalue=MASK):
        name = _name_of(value)
        yield same_place if name is None else named.get(name, MASK)


def _name_of(item: Any) -> str | int | float | None:
    name = item.get("id") if isinstance(item, Mapping) else None
    return name if isinstance(name, (str, int, float)) and name else None


def _words(name: str) -> str:
    """``hubToken``, ``--hub-token`` and ``HUB_TOKEN`` as ``hub_token``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")


@cache
def _known_options() -> frozenset[str]:
    return frozenset((*Config.model_fields, *DatasetEntry.model_fields, *VideoOptions.model_fields))


def _secrets_of_environment() -> Iterator[str]:
    found = {value for name, value in os.environ.items() if len(value) >= _LEAST_LENGTH and looks_secret(name)}
    return iter(sorted(found, key=len, reverse=True))


def _redacted(match: re.Match[str]) -> str:
    if not looks_secret(match["name"]):
        return match[0]
    if "token" in match["name"].lower() and match["value"].replace(".", "").isdigit():
        return match[0]  # a count
    # "the password is wrong": words between blanks are no assignment, unless the name is a flag.
    if match["sign"].isspace() and not match["name"].startswith("-"):
        return match[0]
    return f"{match['name']}{match['sign']}{match['quote']}{MASK}"
