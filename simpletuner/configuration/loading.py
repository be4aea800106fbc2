"""From a configuration file and command-line flags to a :class:`Config`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.configuration.aliases import resolve_aliases
from simpletuner.configuration.config import Config
from simpletuner.configuration.fields import describe_all
from simpletuner.configuration.json_files import parse_json, repeated_names
from simpletuner.configuration.problems import Problem, has_errors
from simpletuner.configuration.validation import build, parse_text

MOST_BYTES = 2**26  # of a configuration, or a list of data sets


def load_config(path: Path | None, arguments: Sequence[str]) -> tuple[Config | None, list[Problem]]:
    """Read ``path`` and the flags, which override it.

    Keys of the file may be written with or without ``--``. Flags: ``--crepa_lambda 0.3``, ``--crepa_lambda=0.3``,
    ``--crepa_enabled`` (true). Returns the configuration, or None if a problem is an error, and all problems.
    """
    config, problems = load_valid_part(path, arguments)
    return (None if has_errors(problems) else config), problems


def load_valid_part(path: Path | None, arguments: Sequence[str]) -> tuple[Config, list[Problem]]:
    """Like :func:`load_config`, but what is invalid is left at its default, so that the rest can be checked too."""
    from_file, unreadable = read_json_object(path) if path is not None else ({}, [])
    config, problems = valid_part(from_file, arguments)
    return config, [*unreadable, *problems]


def valid_part(from_file: Mapping[str, Any], arguments: Sequence[str] = ()) -> tuple[Config, list[Problem]]:
    """Like :func:`load_valid_part`, of what a file holds: its names may have a leading ``--`` or be aliases."""
    flags, malformed = parse_flags(arguments)
    options = describe_all(Config)
    # Aliases are resolved in each source by itself, so that a flag's alias overrides the file's own name.
    values, in_file = resolve_aliases(plain_names(from_file), options)
    overrides, in_flags = resolve_aliases(flags, options)
    typed = {name: _typed(name, value) for name, value in overrides.items()}
    config, invalid = build(Config, {**values, **typed})
    return config, [*malformed, *in_file, *in_flags, *invalid]


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the leading ``--`` that SimpleTuner's files may have before a name."""
    return {name.removeprefix("--"): value for name, value in values.items()}


def parse_flags(arguments: Sequence[str]) -> tuple[dict[str, str | bool], list[Problem]]:
    """Split ``--name value``, ``--name=value`` and ``--name`` into names and texts; the last of equal names wins."""
    flags: dict[str, str | bool] = {}
    problems = []
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = value if equals else True
            waiting = None if equals else name
        elif waiting is not None:
            flags[waiting], waiting = argument, None
        else:
            mend = "Write --option value; quote texts with spaces."
            if argument.endswith(".json"):
                mend = f"Write --config {argument}."
            problems.append(Problem(argument, "belongs to no option", mend))
    return flags, problems


def read_json_object(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The JSON object in a file; empty, with a problem that names the file, if there is none."""
    content, problems = read_json(path)
    if not problems and not isinstance(content, dict):
        return {}, [Problem(str(path), "holds no JSON object", 'Write {"option": value, ...}.')]
    return (content if isinstance(content, dict) else {}), problems


def read_json(path: Path) -> tuple[Any, list[Problem]]:
    """What a JSON file holds; None, with a problem, if it cannot be read or has a name twice in an object."""
    repeated: list[Problem] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(
            Problem(name, f"stands more than once in {path}", "Keep one of them.") for name in repeated_names(pairs)
        )
        return dict(pairs)

    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:  # weights, say, which would take all memory
            return None, [
                Problem(str(path), f"is larger than {MOST_BYTES // 2**20} MiB", "Name the file that is meant.")
            ]
        return parse_json(content.decode("utf-8-sig"), unique), repeated
    except FileNotFoundError:
        return None, [Problem(str(path), "no such file", "Check the path.")]
    except OSError as error:
        return None, [Problem(str(path), f"cannot be read: {error.strerror}", "Check the path and its permissions.")]
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        return None, [Problem(str(path), f"is not valid JSON at {place}: {error.msg}", "Correct the file there.")]
    except UnicodeDecodeError:
        return None, [Problem(str(path), "is not UTF-8 text", "Save it as UTF-8.")]
    except ValueError as error:  # nested too deeply, or a name that can be no path
        return None, [Problem(str(path), f"cannot be read: {error}", "Correct the file or its name.")]


def _typed(name: str, value: str | bool | None) -> Any:
    field = Config.model_fields.get(name)
    return parse_text(field, value) if field is not None and isinstance(value, str) else value
