"""Rules for the options of the evaluation. Each takes the configuration and, if known, the model's family."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.configuration.config import Config
from simpletuner.configuration.encoders import unknown_encoder
from simpletuner.configuration.family import Family
from simpletuner.configuration.paths import kind_of, local_path, missing_path
from simpletuner.configuration.problems import Problem, warning

Problems = Iterator[Problem]

INCEPTION = "inception"


def evaluation(config: Config, family: Family | None) -> Problems:
    """What the evaluation reads is there, and its options fit each other."""
    if config.evaluation_features != INCEPTION:
        problem = unknown_encoder(config.evaluation_features)
        if problem is not None:
            message, mend = problem
            yield Problem("evaluation_features", message, f"{mend.removesuffix('.')}, or {INCEPTION}.")
        if config.evaluation_inception_weights is not None:
            message = f"has no effect: evaluation_features is {config.evaluation_features!r}"
            yield warning("evaluation_inception_weights", message, "Change that, or remove this option.")
    for name, kind in (("evaluation_inception_weights", "file"), ("evaluation_reference", "folder")):
        value = getattr(config, name)
        if value is None:
            continue
        missing = missing_path(value)
        if missing is not None:
            yield Problem(name, *missing)
        elif kind_of(local_path(value)) != kind:
            yield Problem(name, f"{value!r} is no {kind}", f"Name a {kind}.")
    yield from _interval(config)
    if config.eval_steps_interval > 0 and family is not None and family.media == "video":
        message = f"is {config.eval_steps_interval}, but {family.name} makes clips, and only images are evaluated"
        yield Problem("eval_steps_interval", message, "Set it to 0.")
    elif 0 < config.max_train_steps < config.eval_steps_interval:
        message = f"{config.eval_steps_interval} is above max_train_steps ({config.max_train_steps})"
        yield warning("eval_steps_interval", message, "It only happens at the end; lower it for more.")


def _interval(config: Config) -> Problems:
    interval = config.evaluation_guidance_interval
    if interval is None:
        return
    name = "evaluation_guidance_interval"
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        message = f"{interval} is no interval of noise levels from 0 to 1"
        yield Problem(name, message, "Give a lower and a higher one, such as [0, 0.7].")
    elif config.evaluation_guidance == 1:
        yield warning(name, "has no effect: evaluation_guidance is 1, which is none", "Raise that, or remove this.")


EVALUATION_RULES = (evaluation,)
