"""What is told beforehand holds: coefficient and cache are as the trainer's own arithmetic has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.configuration import Config
from simpletuner.configuration.alignment import UrepaOptions
from simpletuner.configuration.coefficient import planned_coefficient
from simpletuner.configuration.dataset import DatasetEntry
from simpletuner.helpers.data import estimate as real
from simpletuner.helpers.data import media
from simpletuner.helpers.data.features import features_of_run
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.helpers.training.alignment.encoders import EfficientNetLite0
from simpletuner.helpers.training.alignment.geometry import TokenGrid, teacher_input_size
from simpletuner.webui import estimates
from simpletuner.webui.estimates import (
    EncoderShape,
    FileCounts,
    cache_estimate,
    coefficient_curve,
    encoder_shape,
    entries_for_estimate,
    student_tokens,
    teacher_tokens,
)
from tests.conftest import MakeFoundation
from tests.helpers.data.files import scan, tiny_options, write_images


def options(**values: Any) -> UrepaOptions:
    return UrepaOptions(enabled=True, **values)


def test_the_curve_is_what_the_trainer_follows() -> None:
    planned = options(
        lambda_=0.4, warmup_steps=50, scheduler="cosine", decay_steps=300, lambda_end=0.1, cutoff_step=700
    )
    curve = coefficient_curve(planned, 5000)
    assert curve is not None and curve.cutoff == 700
    assert all(value == planned_coefficient(planned, 5000, step) for step, value in curve.points)
    steps = [step for step, _ in curve.points]
    assert steps == sorted(set(steps)) and len(steps) <= estimates.MOST_POINTS + 10
    assert {0, 50, 350, 699, 700, 4999} <= set(steps)  # the ends, and where it turns
    assert dict(curve.points)[699] > 0 == dict(curve.points)[700]


def test_a_run_of_unknown_length_has_no_curve() -> None:
    assert coefficient_curve(options(), 0) is None
    assert coefficient_curve(options(scheduler="linear", warmup_steps=100), 100) is None
    short = coefficient_curve(options(cutoff_step=10), 1)
    assert short is not None and short.points == [(0, 0.5)] and short.cutoff is None


@given(
    side=st.integers(64, 2048),
    size=st.one_of(st.just("auto"), st.integers(14, 1024)),
    student=st.integers(1, 128),
    scale=st.sampled_from([1, 2]),
    patch=st.sampled_from([14, 16]),
)
def test_the_teachers_tokens_are_the_trainers(side: int, size: Any, student: int, scale: int, patch: int) -> None:
    height, width = teacher_input_size(
        side, side, patch=patch, image_size=size, student_grid=TokenGrid(1, student, student), scale=scale
    )
    shape = EncoderShape(768, patch, 518)
    assert teacher_tokens(side, size, shape, student, scale) == (height // patch) * (width // patch)


def test_what_is_said_twice_is_the_same() -> None:
    assert media.IMAGE_SUFFIXES == estimates.IMAGE_SUFFIXES and media.VIDEO_SUFFIXES == estimates.VIDEO_SUFFIXES
    kind = EfficientNetLite0
    assert encoder_shape("efficientnet_lite0") == EncoderShape(kind.width, kind.patch, kind.native_size)
    assert encoder_shape("dinov2_vitl14_reg") == EncoderShape(1024, 14, 518)
    assert encoder_shape("timm/vit_base_patch16_clip_224") is None


@pytest.mark.parametrize("changes", [{}, {"feature_cache_dim": 16}, {"feature_cache_dtype": "int8"}])
@pytest.mark.parametrize("size", [140, "auto"])
@pytest.mark.parametrize("family", ["sd1x", "sd3"])
def test_the_estimate_is_what_the_trainer_says(
    family: str, size: int | str, changes: dict[str, Any], tmp_path: Path, make_foundation: MakeFoundation
) -> None:
    """A tiny real model, real images, and the encoder of known width: the same bytes as ``cache --dry-run``."""
    prefix, encoder = ("urepa", "urepa_model") if family == "sd1x" else ("crepa", "crepa_encoder")
    values = {f"{prefix}_enabled": True, encoder: "efficientnet_lite0", f"{prefix}_encoder_image_size": size}
    values |= {f"{prefix}_{name}": value for name, value in changes.items()}
    folder = write_images(tmp_path / "data", [(128, 128)] * 3)
    foundation = make_foundation(family, **tiny_options(tmp_path, resolution=128) | values)
    config: Config = foundation.config
    samples = scan(folder, config)
    features = features_of_run(config, foundation, samples)
    assert features is not None
    stored = real.feature_sizes(features, samples)[features.width][features.options.feature_cache_dtype]

    entry = DatasetEntry(id="a", instance_data_dir=str(folder))
    counts = FileCounts([tmp_path])([entry])
    chosen = config.urepa if family == "sd1x" else config.crepa
    found = cache_estimate(chosen, config, foundation.local_family, datasets=[entry], counts=counts)
    assert found.a_sample == stored and found.samples == 3 and found.total == 3 * stored


def test_frames_of_a_clip_are_counted() -> None:
    config = Config(model_family="wan", crepa_enabled=True, crepa_encoder="dinov2_vits14", resolution=448)
    image = DatasetEntry(id="a", instance_data_dir="a")
    clips = DatasetEntry(id="a", instance_data_dir="a", dataset_type="video")
    one = cache_estimate(config.crepa, config, FAMILIES["wan"], datasets=[image])
    many = cache_estimate(config.crepa, config, FAMILIES["wan"], datasets=[clips])
    assert one.a_sample is not None and many.a_sample is not None
    assert many.a_sample == pytest.approx(13 * one.a_sample, rel=0.01)  # 49 frames in groups of 4, and the first
    assert cache_estimate(config.crepa, config, FAMILIES["wan"]).a_sample == many.a_sample


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"urepa_model": "timm/vit_base_patch16_clip_224"}, "unknown encoder"),
        ({"urepa_feature_cache": False}, "not cached"),
        ({"urepa_use_tae": True}, "not cached"),
        ({"urepa_lambda": 0.0}, "not cached"),
    ],
)
def test_where_there_is_no_number(values: dict[str, Any], reason: str) -> None:
    config = Config(urepa_enabled=True, **values)
    found = cache_estimate(config.urepa, config, FAMILIES["sdxl"])
    assert (found.a_sample, found.total, found.reason) == (None, None, reason)


def test_a_block_of_the_model_itself_is_not_cached() -> None:
    config = Config(crepa_enabled=True, crepa_feature_source="backbone", crepa_teacher_block_index=16)
    assert cache_estimate(config.crepa, config, FAMILIES["sd3"]).reason == "not cached"


def test_data_sets_of_unknown_size_or_none_at_all() -> None:
    config = Config(urepa_enabled=True, urepa_model="dinov2_vits14")
    entries = [DatasetEntry(id="a", instance_data_dir="a"), DatasetEntry(id="b", instance_data_dir="b", disabled=True)]
    found = cache_estimate(config.urepa, config, FAMILIES["sdxl"], datasets=entries, counts={"a": None})
    assert found.samples is None and found.a_sample == cache_estimate(config.urepa, config, FAMILIES["sdxl"]).a_sample
    empty = cache_estimate(config.urepa, config, FAMILIES["sdxl"], datasets=entries, counts={"a": 0})
    assert empty.samples is None and empty.a_sample is not None


def test_resolutions_and_mirrored_files_weigh_in() -> None:
    config = Config(urepa_enabled=True, urepa_model="dinov2_vits14", urepa_encoder_image_size="auto", resolution=512)
    small = DatasetEntry(id="a", instance_data_dir="a", resolution=256.0, horizontal_flip=True)
    large = DatasetEntry(id="b", instance_data_dir="b", resolution=0.25, resolution_type="area")
    found = cache_estimate(config.urepa, config, FAMILIES["sd1x"], datasets=[small, large], counts={"a": 5, "b": 10})
    each = [
        cache_estimate(config.urepa, config, FAMILIES["sd1x"], datasets=[entry]).a_sample or math.nan
        for entry in (small, large)
    ]
    assert found.samples == 20 and found.a_sample == round((10 * each[0] + 10 * each[1]) / 20) and each[0] < each[1]


def test_the_students_tokens() -> None:
    assert student_tokens(1024, FAMILIES["sd3"]) == 64
    assert student_tokens(512, FAMILIES["sd1x"]) == 8
    assert student_tokens(520, FAMILIES["sd1x"]) == 9  # halvings round up
    assert student_tokens(512, None) is None


def test_files_are_counted_inside_the_roots_only(tmp_path: Path) -> None:
    inner = tmp_path / "root" / "pictures" / "more"
    inner.mkdir(parents=True)
    for name in ("a.png", "b.JPG", "c.txt", "d.mp4"):
        (inner / name).touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "e.png").touch()
    folder, outside = str(tmp_path / "root" / "pictures"), str(tmp_path / "outside")
    counts = FileCounts([tmp_path / "root"])
    entries = [DatasetEntry(id=name, instance_data_dir=name) for name in (folder, outside, f"{folder}/none", "")]
    assert counts(entries) == {folder: 2, outside: None, f"{folder}/none": None, "": None}
    clips = FileCounts([tmp_path / "root"])([DatasetEntry(id="a", instance_data_dir=folder, dataset_type="video")])
    assert clips == {folder: 1}
    (inner / "f.png").touch()
    assert counts(entries[:1]) == {folder: 2}  # kept for a while


def test_counting_gives_up_on_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileCounts, "MOST", 2)
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    assert FileCounts([tmp_path])([DatasetEntry(id="a", instance_data_dir=str(tmp_path))]) == {str(tmp_path): None}


def test_entries_that_are_partly_invalid_are_read_as_far_as_they_go() -> None:
    (entry,) = entries_for_estimate([{"id": "a", "resolution": "big", "no_such": 1, "horizontal_flip": True}])
    assert entry.id == "a" and entry.resolution is None and entry.horizontal_flip
