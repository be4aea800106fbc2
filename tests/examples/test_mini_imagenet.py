"""The miniature of ImageNet goes all the way: images, list, names, and a tiny model that can be trained on them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from simpletuner.cli import main
from simpletuner.helpers.data.imagenet import TRAIN
from simpletuner.helpers.models.sizes import latent_shapes
from tests.conftest import MakeFoundation
from tests.evaluation.test_datasets import fashion_folder
from tests.helpers.data.files import make_config, picture, scan

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "mini_imagenet.py"))
write_images, write_model, run_example = EXAMPLE["write_images"], EXAMPLE["write_model"], EXAMPLE["main"]


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """Two classes of three pictures, and a folder without any."""
    folder = tmp_path / "own"
    (folder / "empty").mkdir(parents=True)
    for name in ("red_cat", "dog"):
        (folder / name).mkdir()
        for number in range(3):
            picture(40, 30, number).save(folder / name / f"{number}.png")
    return folder


def test_any_folder_becomes_ilsvrcs_layout(tmp_path: Path, own_images: Path) -> None:
    names = write_images(tmp_path / "mini", images=own_images, per_class=2, size=48)
    assert json.loads(names.read_text()) == {"n00000001": "dog", "n00000002": "red cat"}
    files = sorted((tmp_path / "mini" / TRAIN).rglob("*.JPEG"))
    assert [path.parent.name for path in files] == ["n00000001"] * 2 + ["n00000002"] * 2
    for path in files:
        with Image.open(path) as image:
            assert image.size == (64, 48) and image.format == "JPEG" and image.mode == "RGB"


def test_it_is_sampled_and_read_as_imagenet_is(tmp_path: Path, own_images: Path) -> None:
    root = tmp_path / "mini"
    names = write_images(root, images=own_images, size=48)
    listing = root / "list.csv"
    command = ["imagenet", "sample", "--root", str(root), "--per-class", "2", "--class-names", str(names)]
    assert main([*command, "--output", str(listing)]) == 0
    options = {"caption_strategy": "class", "metadata_file": str(listing), "class_names": str(names)}
    samples = scan(root / TRAIN, make_config(tmp_path), crop_aspect="square", crop_pct=0.875, **options)
    assert [sample.caption for sample in samples] == ["a photo of a dog"] * 2 + ["a photo of a red cat"] * 2


def test_fashion_mnist_has_pictures_that_are_to_be_cropped(tmp_path: Path) -> None:
    (tmp_path / "fashion").mkdir()
    source = fashion_folder(tmp_path / "fashion", train=100)
    names = write_images(tmp_path, fashion_mnist=source, per_class=5, size=32)
    assert len(json.loads(names.read_text())) == 10
    sizes = []
    for index in range(5):
        with Image.open(tmp_path / TRAIN / "n00000010" / f"n00000010_{index}.JPEG") as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[3] == sizes[4] == (32, 32)
    assert sizes[1][0] > sizes[1][1] == 32 == sizes[2][0] < sizes[2][1]


def test_the_tiny_model_keeps_pictures_and_has_16_tokens(
    tmp_path: Path, own_images: Path, make_foundation: MakeFoundation
) -> None:
    root = tmp_path / "mini"
    write_images(root, images=own_images, size=64)
    short = write_model(tmp_path / "short", root, vae_steps=2)
    error = write_model(tmp_path / "model", root, vae_steps=40)
    assert error < 0.5 * short
    foundation = make_foundation("sd1x")
    foundation.config = foundation.config.model_copy(
        update={"pretrained_model_name_or_path": str(tmp_path / "model"), "resolution": EXAMPLE["RESOLUTION"]}
    )
    (sample, *_) = scan(root / TRAIN, make_config(tmp_path), caption_strategy="folder", crop_aspect="square")
    assert latent_shapes(foundation, [sample.bucket]) == {sample.bucket: (4, 32, 32)}
    grid = foundation.sample_grid(sample.bucket, 1)
    assert (grid.height, grid.width) == (4, 4)
    with torch.no_grad():
        latents = foundation.encode_pixels(sample.pixels()[None])
    assert 0.5 < float(latents.std()) < 2
    one, other = foundation.encode_prompts(["a photo of a t-shirt", "a photo of a bag"])
    assert one["prompt_embeds"].shape == (77, 32)
    assert not torch.equal(one["prompt_embeds"], other["prompt_embeds"])


def test_the_command(tmp_path: Path, own_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "mini"), "--images", str(own_images), "--size", "32"]
    assert run_example(arguments) == 0
    assert "2 classes of up to 40 images are in " in capsys.readouterr().out
    for item in own_images.rglob("*.png"):
        item.unlink()
    assert run_example(arguments) == 2
    assert capsys.readouterr().err.startswith("error: --images: ")
    assert run_example([*arguments[:2], "--fashion-mnist", str(own_images)]) == 2
    assert "dataset-fashion-mnist" in capsys.readouterr().err
