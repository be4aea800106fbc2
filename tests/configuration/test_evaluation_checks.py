"""Rules for the options of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simpletuner.configuration import Config
from simpletuner.configuration.evaluation_checks import evaluation
from simpletuner.helpers.models.registry import FAMILIES


def problems_of(family: str | None = None, **options: Any) -> list[str]:
    config = Config(**{"evaluation_guidance": 2.0} | options)
    return [str(problem) for problem in evaluation(config, None if family is None else FAMILIES[family])]


def test_defaults_and_fitting_options_are_fine(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    assert problems_of() == []
    assert (
        problems_of(
            "sd1x",
            evaluation_inception_weights=str(tmp_path / "weights.pth"),
            evaluation_reference=str(tmp_path),
            evaluation_guidance_interval=[0, 0.7],
            eval_steps_interval=100,
            max_train_steps=100,
        )
        == []
    )
    assert problems_of(evaluation_features="dinov2_vitl14") == problems_of(evaluation_features="timm/vit") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evaluation_features": "incepton"}, "error: evaluation_features: 'incepton' is no known encoder"),
        ({"evaluation_features": "incepton"}, "or inception."),
        ({"evaluation_reference": "{here}/nothing"}, "error: evaluation_reference: no such file or folder"),
        ({"evaluation_reference": "{here}/file"}, "is no folder. Name a folder."),
        ({"evaluation_inception_weights": "{here}"}, "is no file. Name a file."),
        (
            {"evaluation_features": "dinov2_vitl14", "evaluation_inception_weights": "{here}/file"},
            "warning: evaluation_inception_weights: has no effect: evaluation_features is 'dinov2_vitl14'",
        ),
        ({"evaluation_guidance_interval": [0.5]}, "[0.5] is no interval of noise levels from 0 to 1"),
        ({"evaluation_guidance_interval": [0.7, 0.2]}, "Give a lower and a higher one"),
        ({"evaluation_guidance_interval": [0.2, 700.0]}, "[0.2, 700.0] is no interval"),
        (
            {"evaluation_guidance_interval": [0.2, 0.7], "evaluation_guidance": 1.0},
            "warning: evaluation_guidance_interval: has no effect: evaluation_guidance is 1",
        ),
        ({"eval_steps_interval": 200, "max_train_steps": 100}, "warning: eval_steps_interval: 200 is above"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    filled = {n: v.format(here=tmp_path) if isinstance(v, str) else v for n, v in options.items()}
    (problem,) = problems_of("sd1x", **filled)
    assert words in problem


def test_clips_are_not_evaluated() -> None:
    (problem,) = problems_of("wan", eval_steps_interval=2)
    assert problem.startswith("error: eval_steps_interval: is 2, but wan makes clips")
    assert problems_of("wan") == []
