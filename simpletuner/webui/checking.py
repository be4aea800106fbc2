"""Checking values as ``simpletuner check`` does, without looking outside of a site's roots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from simpletuner.configuration.checks import check_values
from simpletuner.configuration.config import Config
from simpletuner.configuration.fields import describe_all
from simpletuner.configuration.loading import plain_names
from simpletuner.configuration.paths import kind_of, local_path
from simpletuner.configuration.problems import Problem
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.webui.confinement import Refused, inside
from simpletuner.webui.site import Site

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


def check_inside(site: Site, values: Mapping[str, Any]) -> tuple[Config, list[Problem]]:
    """As :func:`~simpletuner.configuration.checks.check_values`, with a problem for every path outside of the roots.

    Such a path is not looked at, and the configuration that is returned lacks it.
    """
    plain, names = plain_names(values), _path_names()
    outside = {name for name, value in plain.items() if name in names and _is_outside(site, value)}
    config, problems = check_values({name: value for name, value in plain.items() if name not in outside}, FAMILIES)
    found = [problem for problem in problems if problem.option not in outside]
    for name in sorted(outside, key=list(plain).index):
        message = f"{plain[name]!r} lies outside of the folders of this server, which doesn't look there"
        mend = "Choose another path, or start the server with --root for this folder."
        found.append(Problem(name, message, mend, "error" if names[name] in _OF_THE_SERVER else "warning"))
    return config, found


@cache
def _path_names() -> dict[str, str]:
    """The options that are paths, under each of their names."""
    options = [info for info in describe_all(Config) if info.name in (*_OF_THE_SERVER, *_OF_THE_TRAINER)]
    return {name: info.name for info in options for name in (info.name, *info.aliases) if "=" not in name}


def _is_outside(site: Site, value: Any) -> bool:
    """Whether a value is a path outside of the roots; names on a hub are none."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        inside(value, site.roots)
    except Refused:
        return value.startswith(("/", "~")) or ".." in value.split("/") or kind_of(local_path(value)) != ""
    return False
