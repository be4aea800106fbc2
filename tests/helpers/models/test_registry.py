"""The registry agrees with the foundations, and says what is wrong with a name or a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator

from simpletuner.configuration import Config
from simpletuner.helpers.models.registry import FAMILIES, find_family, foundation_class


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_agree_with_their_foundations(name: str) -> None:
    """Mistake 3: a family that is listed has a foundation, of the type that its row states."""
    family, foundation = FAMILIES[name], foundation_class(name)
    assert foundation.NAME == family.name == name
    assert foundation.MODEL_CLASS.__name__ == family.model_class
    assert foundation.MODEL_TYPE.value == family.model_type
    assert family.model_subfolder == ("unet" if family.model_type == "unet" else "transformer")


def test_an_unknown_family_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="model_family is 'sd4'; did you mean 'sd3'"):
        find_family("sd4")


def test_the_registry_is_free_of_torch() -> None:
    code = (
        "import sys, simpletuner.helpers.models.registry; sys.exit(bool({'torch', 'diffusers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_wan_of_two_experts_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "wan"
    shutil.copytree(tiny_folder("wan"), folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"boundary_ratio": 0.875}))
    config = Config(model_family="wan", pretrained_model_name_or_path=str(folder), mixed_precision="no")
    with pytest.raises(ValueError, match="two experts"):
        foundation_class("wan")(config, Accelerator(cpu=True)).load_model()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("wan", "WanImageToVideoPipeline"),
        ("sanavideo", "SanaImageToVideoPipeline"),
        ("ltxvideo", "LTXConditionPipeline"),
        ("hunyuanvideo", "HunyuanVideoImageToVideoPipeline"),
        ("kandinsky5_video", "Kandinsky5T2IPipeline"),
        ("flux2", "Flux2KleinKVPipeline"),
        ("sana", "SanaSprintPipeline"),
        ("z_image", "ZImageOmniPipeline"),
    ],
)
def test_models_of_other_pipelines_are_refused(
    name: str, other: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The model's class is the same, but it takes other inputs."""
    folder = tmp_path / name
    shutil.copytree(tiny_folder(name), folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": other}))
    config = Config(model_family=name, pretrained_model_name_or_path=str(folder), mixed_precision="no")
    foundation = foundation_class(name)(config, Accelerator(cpu=True))
    for refused in (foundation.verify, foundation.load_model):
        with pytest.raises(ValueError, match=f"a model for {other}"):
            refused()


def test_an_inpainting_unet_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("sd1x"), tmp_path / "sd1x"))
    facts = folder / "unet" / "config.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"in_channels": 9}))
    config = Config(model_family="sd1x", pretrained_model_name_or_path=str(folder), mixed_precision="no")
    with pytest.raises(ValueError, match="takes 9 channels and gives 4"):
        foundation_class("sd1x")(config, Accelerator(cpu=True)).verify()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_without_the_model_is_named(name: str, tmp_path: Path) -> None:
    config = Config(model_family=name, pretrained_model_name_or_path=str(tmp_path), mixed_precision="no")
    with pytest.raises(ValueError, match=f"pretrained_model_name_or_path: .* could not be read from .*{tmp_path.name}"):
        foundation_class(name)(config, Accelerator(cpu=True)).load_model()
