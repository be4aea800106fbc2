from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.configuration import Config, Problem, describe_all, load_config
from simpletuner.configuration.loading import read_json
from simpletuner.configuration.validation import build

OPTIONS = {info.name: info for info in describe_all(Config)}


def load(tmp_path: Path, content: object, *arguments: str) -> tuple[Config | None, list[Problem]]:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_config(path, arguments)


def valid(tmp_path: Path, content: object, *arguments: str) -> Config:
    config, problems = load(tmp_path, content, *arguments)
    assert config is not None, problems
    return config


def test_keys_with_and_without_dashes(tmp_path: Path) -> None:
    config = valid(tmp_path, {"--crepa_enabled": True, "crepa_lambda": 0.25, "--seed": None})
    assert (config.crepa.enabled, config.crepa.lambda_, config.seed) == (True, 0.25, 42)


def test_a_name_that_stands_twice_among_many_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    pairs = ", ".join(f'"{number}": 0' for number in (*range(60_000), 59_999))
    path.write_text(f"{{{pairs}}}")
    began = time.process_time()
    assert [problem.option for problem in read_json(path)[1]] == ["59999"]
    assert time.process_time() - began < 20


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    """Such as weights that are named by mistake: they would take all memory."""
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "larger than 64 MiB" in load_config(path, [])[1][0].message


def test_flags_override_the_file(tmp_path: Path) -> None:
    flags = ["--crepa_lambda", "0.3", "--lora-rank=8", "--crepa_enabled", "--use_ema", "false"]
    flags += ["--urepa_align_layers", "mid,enc_last"]
    config = valid(tmp_path, {"crepa_lambda": 0.1, "use_ema": True}, *flags)
    assert (config.crepa.lambda_, config.lora_rank, config.crepa.enabled, config.use_ema) == (0.3, 8, True, False)
    assert config.urepa.align_layers == ["mid", "enc_last"]


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--crepa_encoder_image_size", "auto"], "crepa_encoder_image_size", "auto"),
        (["--crepa_encoder_image_size", "224"], "crepa_encoder_image_size", 224),
        (["--crepa_encoder_frames_batch_size", "-1"], "crepa_encoder_frames_batch_size", -1),
        (["--learning_rate=1e-5"], "learning_rate", 1e-5),
        (["--validation_prompt", "a cat, 512"], "validation_prompt", "a cat, 512"),
        (["--snr_gamma", "none"], "snr_gamma", None),
        (["--validation_resolution", "512"], "validation_resolution", "512"),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)
def test_flags_are_parsed(tmp_path: Path, flags: list[str], name: str, value: object) -> None:
    assert getattr(valid(tmp_path, {"snr_gamma": 5.0}, *flags), name) == value


@pytest.mark.parametrize("info", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_a_flag(tmp_path: Path, info: Any) -> None:
    """Mistake 4: documented keys were rejected by the CLI."""
    examples = {"boolean": "true", "integer": "7", "number": "0.5", "string": "text", "list": "text"}
    text = str(info.choices[-1]) if info.choices else info.example or examples[info.type]
    if info.keywords:
        text = info.keywords[0]
    config = valid(tmp_path, {}, f"--{info.name}", text)
    written = getattr(config, info.name)
    if info.type == "list":
        assert written == (json.loads(text) if info.example else [text])
    else:
        assert str(written).lower() == text


def test_aliases(tmp_path: Path) -> None:
    """Mistake 4: an alias flag always crashed against a non-None default."""
    config = valid(tmp_path, {"crepa_model": "dinov2_vitb14", "crepa_encoder": None, "urepa_encoder": "dinov2_vits14"})
    assert (config.crepa.encoder, config.urepa.encoder) == ("dinov2_vitb14", "dinov2_vits14")
    config = valid(tmp_path, {"crepa_encoder": "dinov2_vitb14"}, "--crepa_model", "dinov2_vitl14")
    assert config.crepa.encoder == "dinov2_vitl14"
    for flags in (["--crepa_use_backbone_features"], ["--crepa_use_backbone_features", "true"]):
        assert valid(tmp_path, {}, *flags).crepa.feature_source == "backbone"
    assert valid(tmp_path, {"crepa_use_backbone_features": False}).crepa.feature_source == "encoder"
    for content in ({"crepa_use_backbone_features": True}, {"crepa_feature_source": "backbone"}):
        assert valid(tmp_path, content, "--crepa_use_backbone_features", "false").crepa.feature_source == "encoder"


@pytest.mark.parametrize(
    "content",
    [
        {"crepa_use_backbone_features": True, "crepa_feature_source": "encoder"},
        {"crepa_model": "dinov2_vitb14", "crepa_encoder": "dinov2_vitl14"},
    ],
)
def test_contradicting_aliases_are_errors(tmp_path: Path, content: dict[str, object]) -> None:
    config, problems = load(tmp_path, content)
    assert config is None and problems[0].option in content and "contradicts" in problems[0].message


def test_all_problems_at_once(tmp_path: Path) -> None:
    content = {
        "crepa_lambda": "0.3",
        "train_batch_size": 0,
        "crepa_enabeld": True,
        "crepa_self_flow": True,
        "mixed_precision": "bf-16",
        "urepa_align_layers": "mid",
    }
    config, problems = load(tmp_path, content, "--seed", "x", "stray", "c.json")
    lines = {problem.option: str(problem) for problem in problems}
    assert config is None
    assert lines["crepa_lambda"] == 'error: crepa_lambda: "0.3" is not a number of at least 0. Write it without quotes.'
    assert "at least 1" in lines["train_batch_size"]
    assert lines["crepa_enabeld"] == 'error: crepa_enabeld: is no option. Did you mean "crepa_enabled"?'
    assert lines["crepa_self_flow"].startswith("warning: ")
    assert 'Did you mean "bf16"?' in lines["mixed_precision"]
    assert '"x" is not a whole number' in lines["seed"]
    assert "belongs to no option" in lines["stray"]
    assert "Write --config c.json." in lines["c.json"]
    assert 'Write a list: ["mid"].' in lines["urepa_align_layers"]


def test_options_of_simpletuner_are_warnings(tmp_path: Path) -> None:
    config, problems = load(tmp_path, {"--push_to_hub": False})
    assert config is not None
    assert [(problem.option, problem.severity) for problem in problems] == [("push_to_hub", "warning")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"seed": 1,}', "not valid JSON at line 1"),
        ("[1]", "holds no JSON object"),
        ('{"seed": 1, "seed": 2}', "stands more than once"),
        ('{"seed": ' + 100_000 * "[", "nested too deeply"),
        ('{"seed": ' + 900 * "[" + 900 * "]" + "}", "is not a whole number"),
        ('{"resolution": 1' + 400 * "0" + "}", "is not a whole number of at least 1"),
        ('{"resolution": 1' + 5000 * "0" + "}", "is not a whole number of at least 1"),
        ('{"seed": 1e999}', "is not a whole number"),
        ('{"seed": 4294967295}', "at most 4294901760"),
        ('{"validation_seed": 9223372036854775808}', "at most 9223372036854775807"),
        ('{"output_dir": "\\ud800"}', "is not a text"),
        ('{"\\ud800": 1}', "is no option"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    config, problems = load(tmp_path, content)
    assert config is None and message in str(problems[0])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / (300 * "x"), Path("a\0b"), Path("\ud800")):
        config, problems = load_config(path, [])
        assert config is None and problems[0].option == str(path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in str(load_config(binary, [])[1][0])


def test_numbers_beyond_64_bits_are_refused_as_flags_too() -> None:
    config, problems = load_config(None, ["--resolution", "1" + 400 * "0"])
    assert config is None and "is not a whole number" in problems[0].message


def test_no_file() -> None:
    assert load_config(None, []) == (Config(), [])


@given(
    st.dictionaries(st.text() | st.sampled_from(list(OPTIONS)), st.none() | st.booleans() | st.integers() | st.text())
)
def test_anything_is_a_config_or_problems(content: dict[str, object]) -> None:
    """Whatever stands in the file, nothing but problems comes of it."""
    config, problems = build(Config, content)
    assert isinstance(config, Config) and all(str(problem) for problem in problems)


@given(st.lists(st.text() | st.sampled_from([f"--{name}" for name in OPTIONS])))
def test_any_flags_are_a_config_or_problems(arguments: list[str]) -> None:
    config, problems = load_config(None, arguments)
    assert (config is None) == any(problem.severity == "error" for problem in problems)
