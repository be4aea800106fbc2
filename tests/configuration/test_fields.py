from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from simpletuner.configuration import Config, OptionInfo, describe_all
from simpletuner.configuration.aliases import alias_names
from simpletuner.configuration.fields import by_place
from simpletuner.configuration.simpletuner_names import SIMPLETUNER_NAMES

OPTIONS = {info.name: info for info in describe_all(Config)}


@pytest.mark.parametrize("info", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_described_and_its_default_is_valid(info: OptionInfo) -> None:
    assert len(info.help) > 10 and info.help.endswith(".") and "{" not in info.help
    assert info.tab and info.section
    assert getattr(Config(**{info.name: info.default}), info.name) == info.default


def test_dependencies_name_options() -> None:
    for info in OPTIONS.values():
        for alternative in (info.depends_on or "").split(" or "):
            name, _, values = alternative.partition("=")
            assert not name or name in OPTIONS
            assert not values or set(values.split("|")) <= set(OPTIONS[name].choices or [])


def test_facts_come_from_the_declaration() -> None:
    size = OPTIONS["crepa_encoder_image_size"]
    assert (size.type, size.minimum, size.keywords, size.choices) == ("integer", 14, ["auto"], None)
    decay = OPTIONS["urepa_similarity_ema_decay"]
    assert (decay.type, decay.minimum, decay.maximum, decay.exclusive_maximum) == ("number", 0, 1, True)
    assert decay.depends_on == "urepa_similarity_threshold"
    layers = OPTIONS["urepa_align_layers"]
    assert (layers.type, layers.choices, layers.default) == ("list", ["mid", "enc_last", "dec_first"], ["mid"])
    assert (layers.tab, layers.section, layers.group) == ("Training", "Loss functions", "U-REPA")


def test_labels_are_declared_or_read_from_the_name() -> None:
    names = ("learning_rate", "lora_rank", "vae_batch_size", "crepa_block_index", "crepa_lambda", "urepa_enabled")
    expected = ["Learning rate", "LoRA rank", "VAE batch size", "Block index", "Weight", "Enabled"]
    assert [OPTIONS[name].label for name in names] == expected
    labels = [(info.tab, info.section, info.group, info.part, info.label) for info in OPTIONS.values()]
    assert len(set(labels)) == len(labels)


def test_options_are_gathered_by_their_places() -> None:
    places = by_place(list(OPTIONS.values()))
    tabs = list(dict.fromkeys(tab for tab, _, _ in places))
    assert tabs == ["Basic", "Model", "Data", "Training", "Run", "Validation"]
    assert [info.name for info in places["Basic", "Length", None]][:2] == ["max_train_steps", "num_train_epochs"]
    assert {info.part for info in places["Training", "Loss functions", "CREPA"]} >= {None, "Teacher", "Schedule"}
    assert sum(map(len, places.values())) == len(OPTIONS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("crepa_lambda", "a number of at least 0"),
        ("crepa_encoder_image_size", 'a whole number of at least 14, or "auto"'),
        ("crepa_similarity_threshold", "a number of at least -1 and at most 1"),
        ("model_type", "one of: lora, full"),
        ("validation_resolution", "a text such as 1344x768"),
    ],
)
def test_expectation(name: str, expected: str) -> None:
    assert OPTIONS[name].expectation() == expected


def test_none_means_default_and_zero_means_zero() -> None:
    """Mistake 8: an explicit 0 became the default."""
    config = Config(crepa_lambda=0, urepa_manifold_weight=0, layersync_lambda=0, train_batch_size=None)
    assert (config.crepa.lambda_, config.urepa.manifold_weight, config.layersync.lambda_) == (0, 0, 0)
    assert config.train_batch_size == 1


def test_names_of_other_trainers_do_not_hide_options() -> None:
    assert not SIMPLETUNER_NAMES & {*OPTIONS, *alias_names(OPTIONS.values())}


@pytest.mark.parametrize("value", ["0.3", True, float("nan"), -0.1])
def test_values_are_strict(value: object) -> None:
    with pytest.raises(ValidationError, match="crepa_lambda"):
        Config(crepa_lambda=value)


def test_validation_resolution_may_be_a_number() -> None:
    assert Config(validation_resolution=512).validation_resolution == "512"


def test_the_package_needs_no_torch() -> None:
    code = "import sys, simpletuner.configuration; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
