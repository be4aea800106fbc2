"""What can be said of a configuration without loading a model: all of it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.configuration.alignment_checks import ALIGNMENT_RULES
from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import check_entries, load_dataset_config
from simpletuner.configuration.dependencies import without_effect
from simpletuner.configuration.evaluation_checks import EVALUATION_RULES
from simpletuner.configuration.family import Family, family_of_folder, with_local_facts
from simpletuner.configuration.general_checks import GENERAL_RULES
from simpletuner.configuration.loading import load_valid_part, valid_part
from simpletuner.configuration.paths import kind_of, local_path
from simpletuner.configuration.problems import Problem, has_errors
from simpletuner.configuration.validation import nearest


def check(config: Config, family: Family | None, model_depth: int | None = None) -> list[Problem]:
    """Every problem of options that contradict each other, the model or the disk.

    ``family`` may be None if it is unknown: what depends on it is not checked then. ``model_depth`` is the real
    number of blocks, where it is known.
    """
    if family is not None and model_depth is not None:
        family = family.with_depth(model_depth)
    rules = (*GENERAL_RULES, *EVALUATION_RULES, *ALIGNMENT_RULES)
    problems = [problem for rule in rules for problem in rule(config, family)]
    named = {problem.option for problem in problems}
    return problems + [problem for problem in without_effect(config) if problem.option not in named]


def check_config_file(
    path: Path | None, arguments: Sequence[str], families: Mapping[str, Family]
) -> tuple[Config | None, list[Problem]]:
    """Load a configuration and check it with its model folder and its data sets; no weights are read.

    Returns the configuration, or None if a problem is an error, and all problems. An option whose value is invalid
    in itself is not checked against others, and a file that cannot be read is the only problem.
    """
    config, problems = load_valid_part(path, arguments)
    if str(path) in {problem.option for problem in problems}:
        return None, problems
    problems = _with_contradictions(config, problems, families)
    return (None if has_errors(problems) else config), problems


def check_values(values: Mapping[str, Any], families: Mapping[str, Family]) -> tuple[Config, list[Problem]]:
    """Check what a configuration file would hold, such as a form that is being filled in.

    Returns the configuration, in which what is invalid in itself has its default, and all problems: the same as of
    :func:`check_config_file`.
    """
    config, problems = valid_part(values)
    return config, _with_contradictions(config, problems, families)


def find_family(config: Config, families: Mapping[str, Family]) -> Family | None:
    """The family of a configuration's model, with what a local model folder states of itself; None if unknown."""
    return _find_family(config, families)[0]


def _with_contradictions(config: Config, problems: list[Problem], families: Mapping[str, Family]) -> list[Problem]:
    """The problems of single options, and those between options, the model folder and the data sets."""
    invalid = {problem.option for problem in problems}
    family, found = _find_family(config, families)
    found += check(config, family)
    if kind_of(local_path(config.data_backend_config)) == "file":
        entries, in_entries = load_dataset_config(local_path(config.data_backend_config))
        found += in_entries + check_entries(entries, config, family)
    return problems + [problem for problem in found if problem.option not in invalid]


def _find_family(config: Config, families: Mapping[str, Family]) -> tuple[Family | None, list[Problem]]:
    name = config.model_family
    family = families.get(name)
    if family is None:
        mend = nearest(name, families) or f"Use one of {', '.join(families)}."
        return None, [Problem("model_family", f"{name!r} is no known family", mend)] if name else []
    folder = local_path(config.pretrained_model_name_or_path)
    if not config.pretrained_model_name_or_path or kind_of(folder) != "folder":
        return family, []
    option, needed = "pretrained_model_name_or_path", f"{family.model_subfolder}/config.json"
    actual = family_of_folder(folder, families.values())
    if actual is not None and actual.model_class != family.model_class:
        message = f"{str(folder)!r} holds a model of the family {actual.name} ({actual.model_class}), not of {name}"
        return family, [Problem(option, message, f"Set model_family to {actual.name}, or name another folder.")]
    try:
        return with_local_facts(family, folder), []
    except FileNotFoundError:
        message = f"{str(folder)!r} is no {name} model in the diffusers layout, which needs {needed}"
        return family, [Problem(option, message, "Name the model's own folder, or a model on the hub.")]
    except (OSError, ValueError) as error:
        message = f"{needed} or vae/config.json in {str(folder)!r} can't be read ({error})"
        return family, [Problem(option, message, "Mend that file, or get the model again.")]
