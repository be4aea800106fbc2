"""How configurations of runs differ, and what aligned them."""

from __future__ import annotations

import pytest

from simpletuner.webui.pages.past_runs import differences, methods_of, run_values
from simpletuner.webui.records import config_file
from simpletuner.webui.secrets import MASK
from simpletuner.webui.site import Site
from tests.webui.pages.recorded import record_run


def test_only_what_differs_is_told_defaults_included() -> None:
    plain = {"model_family": "sd3", "learning_rate": 1e-4}
    aligned = {"--model_family": "sd3", "crepa_enabled": True, "crepa_lambda": 0.5, "my_own_key": 1, "seed": 42}
    found = {one.option: one.values for one in differences([plain, aligned])}
    assert found == {"crepa_enabled": (False, True), "my_own_key": (None, 1)}


def test_an_alias_is_the_option_that_it_stands_for() -> None:
    values = [{"crepa_model": "dinov2_vits14"}, {"crepa_encoder": "dinov2_vits14"}, {"crepa_encoder": "dinov2_vitb14"}]
    assert differences(values[:2]) == []
    (difference,) = differences(values)
    assert difference.option == "crepa_encoder"
    assert difference.values == ("dinov2_vits14", "dinov2_vits14", "dinov2_vitb14")


def test_secrets_are_masked() -> None:
    (difference,) = differences([{"wandb_api_key": "one"}, {"wandb_api_key": "two"}])
    assert difference.values == (MASK, MASK)


@pytest.mark.parametrize(
    ("values", "methods"),
    [
        ({"model_family": "sd3"}, ""),
        ({"model_family": "sd3", "crepa_enabled": True}, "REPA"),
        ({"model_family": "wan", "crepa_enabled": True, "layersync_enabled": True}, "CREPA + LayerSync"),
        ({"model_family": "sd1x", "urepa_enabled": True, "irepa_enabled": True}, "U-REPA + iREPA"),
        ({"model_family": "sd3", "crepa_enabled": False}, ""),
        ({}, ""),
    ],
)
def test_methods(values: dict[str, object], methods: str) -> None:
    assert methods_of(values) == methods


def test_a_configuration_that_is_gone_is_empty(site: Site) -> None:
    run = record_run(site, config={"--seed": 7})
    assert run_values(run)["seed"] == 7
    config_file(run.folder, 1).unlink()
    assert run_values(run) == {}
