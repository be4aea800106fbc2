from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from simpletuner.configuration import Config, describe_all
from simpletuner.configuration.family import with_local_facts
from simpletuner.helpers.models.registry import FAMILIES
from tests.configuration.conftest import TRANSFORMER, UNET


def write(folder: Path, **parts: object) -> Path:
    for part, config in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


def test_depth_patch_and_ratio_of_a_transformer(tmp_path: Path) -> None:
    family = replace(TRANSFORMER, depth_keys=("num_layers", "num_single_layers"))
    model = {"num_layers": 2, "num_single_layers": 3, "patch_size": [1, 4, 4]}
    folder = write(tmp_path, transformer=model, vae={"block_out_channels": [8, 16]})
    facts = with_local_facts(family, folder)
    assert (facts.depth, facts.patch_size, facts.latent_ratio, facts.pixels_per_token) == (5, 4, 2, 8)


def test_packing_families_keep_their_patch(tmp_path: Path) -> None:
    folder = write(tmp_path, transformer={"num_layers": 2, "patch_size": 1})
    assert with_local_facts(replace(TRANSFORMER, patch_key=None), folder).patch_size == 2


def test_a_folder_states_its_own_facts(tmp_path: Path) -> None:
    folder = write(tmp_path, transformer={"num_layers": 6}, vae={"scale_factor_spatial": 16})
    facts = with_local_facts(TRANSFORMER, folder)
    assert facts.stated == {"depth", "latent_ratio"} and not facts.token_is_stated
    assert (facts.depth, facts.default_block, facts.latent_ratio) == (6, 2, 16)


@pytest.mark.parametrize("value", [0, -2, True, 1.5, "2", None, [], [0], {}])
def test_sizes_that_can_be_none_are_not_believed(tmp_path: Path, value: object) -> None:
    model = {"num_layers": value, "patch_size": value, "pos_embed_max_size": value}
    folder = write(tmp_path, transformer=model, vae={"scale_factor_spatial": value})
    assert with_local_facts(TRANSFORMER, folder) == TRANSFORMER


def test_mid_block_cell_of_a_unet(tmp_path: Path) -> None:
    folder = write(tmp_path, unet={"block_out_channels": [8, 16, 32]}, vae={"dim_mult": [1, 2, 4, 4]})
    facts = with_local_facts(UNET, folder)
    assert (facts.depth, facts.patch_size, facts.latent_ratio) == (None, 4, 8)


@pytest.mark.parametrize(("positions_of_square", "side"), [(False, 96), (True, 9)])
def test_the_longest_side_with_positions(positions_of_square: bool, side: int, tmp_path: Path) -> None:
    """SD3 states a side; AuraFlow counts the positions of a whole square."""
    folder = write(tmp_path, transformer={"pos_embed_max_size": 96})
    assert with_local_facts(replace(TRANSFORMER, positions_of_square=positions_of_square), folder).max_tokens == side


def test_ratio_of_a_deep_compression_autoencoder(tmp_path: Path) -> None:
    folder = write(tmp_path, transformer={}, vae={"encoder_block_out_channels": [8] * 6})
    assert with_local_facts(TRANSFORMER, folder).latent_ratio == 32


def test_pixel_space(tmp_path: Path) -> None:
    folder = write(tmp_path, transformer={"num_layers": 6, "patch_size": 4})
    assert with_local_facts(replace(TRANSFORMER, pixel_space_without_vae=True), folder).pixels_per_token == 4


def test_what_the_folder_does_not_say_stays_as_published(tmp_path: Path) -> None:
    assert with_local_facts(TRANSFORMER, write(tmp_path, transformer={}, vae={})) == TRANSFORMER


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_broken_model_configs(tmp_path: Path, content: str) -> None:
    write(tmp_path, transformer={})
    (tmp_path / "transformer" / "config.json").write_text(content)
    with pytest.raises(ValueError):
        with_local_facts(TRANSFORMER, tmp_path)


@pytest.mark.parametrize(
    ("family", "option", "suits"),
    [
        ("sd3", "crepa_enabled", True),
        ("sd3", "urepa_enabled", False),
        ("sd3", "layersync_enabled", True),
        ("sd3", "crepa_adjacent_distance", False),
        ("sd3", "validation_num_video_frames", False),
        ("wan", "crepa_adjacent_distance", True),
        ("wan", "validation_num_video_frames", True),
        ("sdxl", "urepa_enabled", True),
        ("sdxl", "crepa_lambda", False),
        ("sdxl", "layersync_enabled", False),
        ("sdxl", "irepa_enabled", True),
    ],
)
def test_which_options_are_for_a_family(family: str, option: str, suits: bool) -> None:
    only_for = next(info.only_for for info in describe_all(Config) if info.name == option)
    assert FAMILIES[family].suits(only_for) is suits
