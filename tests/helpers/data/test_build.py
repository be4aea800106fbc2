"""The caches hold what the foundation encodes, and only what is missing is encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from simpletuner.helpers.data.build import build_caches, cache_progress
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.records import Records
from simpletuner.helpers.data.samples import Sample
from tests.conftest import MakeFoundation
from tests.helpers.data.files import scan, tiny_options, write_images

SIZES = [(64, 64), (96, 48), (64, 64), (64, 64)]


def build(samples: list[Sample], foundation: Any) -> None:
    with cache_progress(enabled=False) as progress:
        build_caches(samples, foundation, foundation.config, progress)


def files_of(root: Path) -> dict[Path, int]:
    """Every record and when it was written."""
    return {path: path.stat().st_mtime_ns for path in (root / "caches").rglob("*.safetensors")}


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_are_those_of_the_samples_pixels(tmp_path: Path, make_foundation: MakeFoundation, workers: int) -> None:
    foundation = make_foundation("sd3", **tiny_options(tmp_path, max_workers=workers))
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    build(samples, foundation)
    records = Records(foundation.config, samples)
    for sample in samples:
        latents = records.latents(sample).read()["latents"]
        torch.testing.assert_close(latents, foundation.encode_pixels(sample.pixels()[None])[0])
    for prompt in ("", "picture 3"):
        (expected,) = foundation.encode_prompts([prompt])
        torch.testing.assert_close(records.prompt(prompt).read(), expected)


def test_second_build_loads_and_writes_nothing(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    options = tiny_options(tmp_path)
    foundation = make_foundation("sd1x", **options)
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    build(samples, foundation)
    assert foundation.vae is None  # freed
    written = files_of(tmp_path)
    assert len(written) == len(SIZES) + len(SIZES) + 1
    build(samples, foundation)
    assert files_of(tmp_path) == written


def test_damaged_record_is_rebuilt_alone(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    build(samples, foundation)
    record = Records(foundation.config, samples).latents(samples[1])
    expected, written = record.read()["latents"], files_of(tmp_path)
    damaged = record.store.path(record.key)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    build(samples, foundation)
    torch.testing.assert_close(record.read()["latents"], expected)
    assert {path for path, time in files_of(tmp_path).items() if written[path] != time} == {damaged}


def test_key_depends_on_all_that_changes_the_value(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    config = foundation.config
    data = write_images(tmp_path / "data", [(100, 40)])

    def keys(config: Any = config, **changes: Any) -> tuple[str, str]:
        samples = scan(data, config, **changes)
        records = Records(config, samples)
        return records.latents(samples[0]).key, records.prompt("picture").key

    latents, prompt = keys()
    assert keys() == (latents, prompt)
    for changes in ({"crop_aspect": "square"}, {"resolution": 128.0}, {"crop": False}):
        assert keys(**changes)[0] != latents
    other_model = make_foundation("sd3", **tiny_options(tmp_path)).config
    assert keys(other_model)[0] != latents
    assert keys(other_model)[1] != prompt
    half = make_foundation("sd1x", **tiny_options(tmp_path, mixed_precision="bf16")).config
    assert keys(half)[0] == latents  # the VAE always works in fp32
    assert keys(half)[1] != prompt
    Image.new("RGB", (100, 40)).save(data / "0.png")
    assert keys()[0] != latents


def test_labels_of_classes_are_encoded_again_when_the_classes_change(
    tmp_path: Path, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation("dit_pixels", **tiny_options(tmp_path, resolution=16, aspect_bucket_alignment=8))

    def label(caption: str) -> Tensor:
        samples = scan(tmp_path / "data", foundation.config)
        build(samples, foundation)
        return Records(foundation.config, samples).prompt(caption).read()["class_labels"]

    data = write_images(tmp_path / "data", [(16, 16)] * 2)
    assert label("picture 1") == 1
    write_images(tmp_path / "data", [(16, 16)] * 2)
    (data / "0.txt").write_text("zebra")
    assert label("picture 1") == 0
    assert label("zebra") == 1


def test_file_that_breaks_after_the_scan_is_named(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    data = write_images(tmp_path / "data", SIZES)
    samples = scan(data, foundation.config)
    (data / "1.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"1\.png.*could be read when it was scanned"):
        build(samples, foundation)


def test_latents_that_are_not_finite_name_the_file(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    samples = scan(write_images(tmp_path / "data", SIZES[:1]), foundation.config)
    with torch.no_grad():
        next(foundation.load_vae().parameters()).fill_(float("nan"))
    with pytest.raises(DatasetError, match=r"0\.png: the VAE gives latents that are not finite"):
        build(samples, foundation)
