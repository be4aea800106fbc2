"""Checking values as ``simpletuner check`` does, without looking outside of a site's roots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from simpletuner.configuration.checks import check_values
from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import NOT_NEEDED
from simpletuner.configuration.fields import describe_all
from simpletuner.configuration.loading import plain_names
from simpletuner.configuration.paths import kind_of, local_path
from simpletuner.configuration.problems import Problem, Severity
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.confinement import Refused, inside
from simpletuner.webui.project_data import read_datasets
from simpletuner.webui.secrets import redact
from simpletuner.webui.site import Site
from simpletuner.webui.stored import ProjectError

# The server reads or shows what these name, so it must lie in the roots.
_OF_THE_SERVER = ("data_backend_config", "output_dir", "cache_dir")
# The trainer reads what these name: it may lie elsewhere, but the server doesn't look at it.
_OF_THE_TRAINER = (
    "pretrained_model_name_or_path",
    "resume_from_checkpoint",
    "crepa_encoder",
    "urepa_model",
    "evaluation_inception_weights",
    "evaluation_reference",
)
# Of a data set: the trainer writes into the first, and reads the others, which may be relative to the second.
_WRITTEN, _FOLDER = "cache_dir_vae", "instance_data_dir"
_IN_FOLDER = ("metadata_file", "class_names")


def check_inside(site: Site, values: Mapping[str, Any]) -> tuple[Config, list[Problem]]:
    """As :func:`~simpletuner.configuration.checks.check_values`, with a problem for every path outside of the roots.

    Such a path is not looked at, and the configuration that is returned lacks it. Secrets are in no message.
    """
    plain, names = plain_names(values), _path_names()
    outside = {name for name, value in plain.items() if name in names and _is_outside(site, value)}
    config, problems = check_values({name: value for name, value in plain.items() if name not in outside}, FAMILIES)
    found = [problem for problem in problems if problem.option not in outside]
    for name in sorted(outside, key=list(plain).index):
        found.append(_outside(name, plain[name], "error" if names[name] in _OF_THE_SERVER else "warning"))
    return config, _with_datasets_on_disk(site, config, [_without_secrets(problem) for problem in found])


def datasets_inside(
    site: Site, entries: Iterable[Mapping[str, Any]], path: Path, problems: Iterable[Problem]
) -> list[Problem]:
    """The problems of a list of data sets, without those that tell what lies outside of the roots.

    Each path that does is a problem instead: a warning, or an error where the trainer would write.
    """
    outside: dict[str, Problem] = {}
    hidden: set[str] = set()
    for number, entry in enumerate(entries):
        start, values = f"{path.name}: {entry.get('id') or f'entry {number + 1}'}.", plain_names(entry)
        if values.get("disabled") is True or values.get("dataset_type") in NOT_NEEDED:
            continue  # nobody reads them
        for key in (_FOLDER, *_IN_FOLDER):
            if _is_outside(site, values.get(key)):
                outside[start + key] = _outside(start + key, values[key], "warning")
        if start + _FOLDER in outside:
            hidden |= {start + key for key in _IN_FOLDER}
        if _is_refused(site, values.get(_WRITTEN)):
            outside[start + _WRITTEN] = _outside(start + _WRITTEN, values[_WRITTEN], "error")
    kept = [problem for problem in problems if problem.option not in hidden | set(outside)]
    return [_without_secrets(problem) for problem in (*kept, *outside.values())]


def _with_datasets_on_disk(site: Site, config: Config, problems: list[Problem]) -> list[Problem]:
    """The problems, with those of the list of data sets as :func:`datasets_inside` has them."""
    path = local_path(config.data_backend_config)
    if kind_of(path) != "file":
        return problems
    try:
        listed = read_datasets(site, {"data_backend_config": config.data_backend_config})
    except (ProjectError, Refused) as error:
        is_told = any(problem.option == str(path) for problem in problems)
        return problems if is_told else [*problems, Problem(str(path), str(error).rstrip("."), "Correct it.")]
    return problems if listed is None else datasets_inside(site, listed.entries, path, problems)


def _outside(option: str, value: Any, severity: Severity) -> Problem:
    message = f"{value!r} lies outside of the folders of this server, which doesn't look there"
    return Problem(option, message, "Choose another path, or start the server with --root for this folder.", severity)


def _without_secrets(problem: Problem) -> Problem:
    return replace(problem, message=redact(problem.message))


@cache
def _path_names() -> dict[str, str]:
    """The options that are paths, under each of their names."""
    options = [info for info in describe_all(Config) if info.name in (*_OF_THE_SERVER, *_OF_THE_TRAINER)]
    return {name: info.name for info in options for name in (info.name, *info.aliases) if "=" not in name}


def _is_outside(site: Site, value: Any) -> bool:
    """Whether a value is a path outside of the roots; names on a hub are none."""
    if not _is_refused(site, value):
        return False
    return value.startswith(("/", "~")) or ".." in value.split("/") or kind_of(local_path(value)) != ""


def _is_refused(site: Site, value: Any) -> bool:
    """Whether a value, if it is a path, leads out of the roots."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        inside(value, site.roots)
    except Refused:
        return True
    return False
