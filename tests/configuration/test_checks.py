from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.configuration.checks import check_config_file, check_values
from tests.configuration.conftest import FAMILIES, VIDEO, Check


@pytest.mark.parametrize(
    ("options", "name", "severity", "words"),
    [
        ({"model_family": None}, "model_family", "error", "is not set"),
        ({"data_backend_config": "./gone.json"}, "data_backend_config", "error", "no such file"),
        ({"data_backend_config": "."}, "data_backend_config", "error", "is a folder"),
        ({"pretrained_model_name_or_path": "/gone/model"}, "pretrained_model_name_or_path", "error", "no such file"),
        ({"resume_from_checkpoint": "checkpoint-3"}, "resume_from_checkpoint", "error", "no such file"),
        ({"output_dir": __file__}, "output_dir", "error", "is a file"),
        ({"pretrained_model_name_or_path": "./" + 300 * "x"}, "pretrained_model_name_or_path", "error", "too long"),
        ({"data_backend_config": 300 * "x"}, "data_backend_config", "error", "too long"),
        ({"data_backend_config": "a\0b"}, "data_backend_config", "error", "can be no path"),
        ({"resume_from_checkpoint": 300 * "x"}, "resume_from_checkpoint", "error", "too long"),
        ({"max_train_steps": 0}, "max_train_steps", "error", "no end"),
        ({"num_train_epochs": 3}, "num_train_epochs", "warning", "shorter"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 1000}, "lr_warmup_steps", "error", "not below"),
        ({"lr_warmup_steps": 10}, "lr_warmup_steps", "warning", "lr_scheduler is 'constant'"),
        ({"checkpoint_step_interval": 5000}, "checkpoint_step_interval", "warning", "above max_train_steps"),
        ({"resolution": 1000}, "resolution", "error", "Use 992 or 1008."),
        ({"resolution": 1040}, "resolution", "warning", "not a multiple of aspect_bucket_alignment"),
        ({"resolution": 32}, "resolution", "error", "smaller than aspect_bucket_alignment"),
        ({"resolution": 1000, "aspect_bucket_alignment": 8}, "aspect_bucket_alignment", "error", "Use 16."),
        (
            {"validation_prompt": "x", "validation_resolution": "512x500"},
            "validation_resolution",
            "error",
            "496 or 512",
        ),
        ({"train_from_scratch": True}, "train_from_scratch", "error", "Set model_type to full"),
        (
            {"train_from_scratch": True, "model_type": "full", "trainable_prefixes": ["blocks."]},
            "trainable_prefixes",
            "error",
            "the rest of the model would stay at its random weights",
        ),
        (
            {"model_type": "full", "peft_lora_target_modules": ["to_q"]},
            "peft_lora_target_modules",
            "warning",
            "model_type is 'full'",
        ),
        ({"prediction_type": "flow_matching", "snr_gamma": 5.0}, "snr_gamma", "warning", "no effect"),
        ({"prediction_type": "epsilon", "flow_schedule_shift": 3.0}, "flow_schedule_shift", "warning", "no effect"),
        ({"ema_decay": 0.9}, "ema_decay", "warning", "use_ema is false"),
        ({"model_type": "full", "lora_rank": 4}, "lora_rank", "warning", "model_type is 'full'"),
        ({"validation_guidance": 3.0}, "validation_guidance", "warning", "validation_prompt is not set"),
        (
            {"validation_prompt": "x", "validation_num_video_frames": 9},
            "validation_num_video_frames",
            "warning",
            "makes images",
        ),
    ],
)
def test_rules(problems_of: Check, options: dict[str, Any], name: str, severity: str, words: str) -> None:
    problem = problems_of(**options)[name]
    assert problem.severity == severity
    assert words in str(problem)


def test_clip_lengths(problems_of: Check) -> None:
    problems = problems_of(VIDEO, validation_prompt="x", validation_num_video_frames=20)
    assert "Use 17 or 21." in problems["validation_num_video_frames"].mend


def check_file(tmp_path: Path, content: dict[str, Any], *arguments: str) -> dict[str, str]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    config, problems = check_config_file(path, arguments, FAMILIES)
    assert (config is None) == any(problem.severity == "error" for problem in problems)
    assert len({problem.option for problem in problems}) == len(problems)
    return {problem.option: str(problem) for problem in problems}


def test_a_valid_file(tmp_path: Path, complete: dict[str, Any]) -> None:
    assert check_file(tmp_path, complete) == {}


def test_invalid_values_and_broken_rules_are_listed_together(tmp_path: Path, complete: dict[str, Any]) -> None:
    content = {**complete, "model_family": "sd33", "crepa_lambda": "a lot", "irepa_enabled": True}
    problems = check_file(tmp_path, content, "--resolution", "many")
    assert set(problems) == {"model_family", "crepa_lambda", "irepa_enabled", "resolution"}
    assert 'Did you mean "sd3"?' in problems["model_family"]


def test_an_unreadable_file_is_the_only_problem(tmp_path: Path) -> None:
    config, problems = check_config_file(tmp_path / "gone.json", [], FAMILIES)
    assert config is None and [problem.message for problem in problems] == ["no such file"]


def test_the_model_folder_is_read(tmp_path: Path, complete: dict[str, Any]) -> None:
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    content = {**complete, "pretrained_model_name_or_path": str(tmp_path / "model"), "crepa_enabled": True}
    assert "needs transformer/config.json" in check_file(tmp_path, content)["pretrained_model_name_or_path"]
    (tmp_path / "model" / "transformer" / "config.json").write_text('{"num_layers": 3}')
    assert "3 blocks" in check_file(tmp_path, {**content, "crepa_block_index": 3})["crepa_block_index"]


@pytest.mark.parametrize("text", ['{"patch_size": 0}', "[" * 100_000, '{"num_layers": 1' + 5000 * "0" + "}", "\ud800"])
def test_no_model_folder_is_a_traceback(tmp_path: Path, complete: dict[str, Any], text: str) -> None:
    for part in ("transformer", "vae"):
        (tmp_path / "model" / part).mkdir(parents=True)
        (tmp_path / "model" / part / "config.json").write_text(text, errors="surrogatepass")
    content = {**complete, "pretrained_model_name_or_path": str(tmp_path / "model"), "crepa_enabled": True}
    problems = check_file(tmp_path, content)
    assert set(problems) <= {"pretrained_model_name_or_path"}
    if not text.startswith("{"):
        assert "config.json" in problems["pretrained_model_name_or_path"]


def test_data_sets_are_checked(tmp_path: Path, complete: dict[str, Any]) -> None:
    Path(complete["data_backend_config"]).write_text('[{"id": "mine", "instance_data_dir": "/gone"}]')
    assert "no such folder" in check_file(tmp_path, complete)["multidatabackend.json: mine.instance_data_dir"]


def test_a_form_is_told_the_same_as_a_file(tmp_path: Path) -> None:
    values = {"model_family": "sd3", "crepa_lambda": "much", "urepa_enabled": True, "max_train_steps": 3, "sead": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    config, problems = check_values(values, FAMILIES)
    assert problems == check_config_file(path, [], FAMILIES)[1]
    assert {problem.option for problem in problems} >= {"crepa_lambda", "urepa_enabled", "sead"}
    assert config.crepa.lambda_ == 0.5 and config.max_train_steps == 3
