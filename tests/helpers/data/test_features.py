"""The cache of teacher features: whose it is, how it is kept, and what is fitted to the data once."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpletuner.configuration.cache_sizes import on_disk
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.features import FeatureCache, features_of_run
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.data.store import CacheMismatchError
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.alignment.teachers import make_teacher
from tests.conftest import MakeFoundation
from tests.helpers.data.caches import Watch, build, contents
from tests.helpers.data.files import numbered_frames, scan, tiny_options, write_clip, write_images

SIZES = [(64, 64), (128, 64), (64, 128), (64, 64)]


class Run:
    """Runs that share images and a `cache_dir`."""

    def __init__(self, root: Path, make_foundation: MakeFoundation, encoder: Path) -> None:
        self.root = root
        self.encoder = encoder
        self.make_foundation = make_foundation
        self.data = root / "data"
        if not self.data.exists():
            write_images(self.data, SIZES)

    def without_features(self, root: Path) -> Run:
        """A copy with the latents and the prompts alone, which take longer to make."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("features"), dirs_exist_ok=True)
        return Run(root, self.make_foundation, self.encoder)

    def foundation(self, folder: str = "sd3", **options: Any) -> Any:
        prefix = "urepa" if folder == "sd1x" else "crepa"
        shared = {"enabled": True, "encoder_image_size": 56}
        shared["model" if folder == "sd1x" else "encoder"] = str(self.encoder)
        own = {f"{prefix}_{name}": value for name, value in shared.items()}
        return self.make_foundation(folder, **tiny_options(self.root) | own | options)

    def samples(self, foundation: Any, **entry: Any) -> list[Sample]:
        return scan(self.data, foundation.config, **entry)

    def build(self, folder: str = "sd3", *, rebuild: bool = False, **options: Any) -> tuple[list[Sample], FeatureCache]:
        foundation = self.foundation(folder, **options)
        samples = self.samples(foundation)
        features = build(samples, foundation, rebuild=rebuild).features
        assert features is not None
        return samples, features

    def tokens(self, samples: list[Sample], features: FeatureCache) -> list[Tensor]:
        return [unpack(features.record(sample).read()) for sample in samples]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_foundation: MakeFoundation, tiny_teacher: Path) -> Run:
    """With caches of tiny_teacher's features at size 56 in bf16, which nobody changes."""
    run = Run(tmp_path_factory.mktemp("features"), make_foundation, tiny_teacher)
    run.build()
    return run


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """A copy of it without features."""
    return run.without_features(tmp_path)


# Whose it is


def copied(encoder: Path, target: Path, **facts: Any) -> Path:
    """A copy of the teacher, with other facts in its config.json."""
    shutil.copytree(encoder, target)
    config = target / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | facts))
    return target


def other_weights(encoder: Path, target: Path) -> Path:
    state = load_file(copied(encoder, target) / "model.safetensors")
    state["cls_token"] += 1
    save_file(state, target / "model.safetensors")
    return target


Refused = tuple[dict[str, Any], str]
REFUSED: dict[str, Refused] = {
    "size": ({"crepa_encoder_image_size": 84}, r"size is 84 here and 56 there \(see crepa_encoder_image_size\)"),
    "auto": (
        {"crepa_encoder_image_size": "auto"},
        r"size is 'auto, 16 pixels a token' here and 56 there \(see crepa_encoder_image_size\)",
    ),
    "dtype": (
        {"crepa_feature_cache_dtype": "int8"},
        r"dtype is 'int8' here and 'bf16' there \(see crepa_feature_cache_dtype\)",
    ),
    "width": ({"crepa_feature_cache_dim": 8}, r"width is 8 here and 16 there \(see crepa_feature_cache_dim\)"),
    "whitening": ({"crepa_feature_cache_dim": 16}, r"whitened is True here and False there"),
    "encoder": (
        {"crepa_encoder": "efficientnet_lite0", "crepa_encoder_image_size": 56},
        r"encoder is 'efficientnet_lite0' here and 'vit_small_patch14_dinov2' there \(see crepa_encoder\).*"
        r"width is 432 here and 16 there",
    ),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_a_cache_made_otherwise_is_refused(run: Run, options: dict[str, Any], words: str) -> None:
    before = contents(run.root)
    foundation = run.foundation(**options)
    watch = Watch(foundation)
    with pytest.raises(CacheMismatchError, match=words) as refused:
        build(run.samples(foundation), foundation)
    message = str(refused.value)
    assert str(run.root / "caches" / "features") in message
    assert "`simpletuner cache --rebuild`" in message and "\n" not in message
    assert contents(run.root) == before and (watch.images, watch.prompts) == (0, 0)


def test_another_encoders_weights_are_refused(run: Run, tmp_path: Path) -> None:
    encoder = other_weights(run.encoder, tmp_path / "other")
    with pytest.raises(CacheMismatchError, match=r"weights is '[0-9a-f]{16}' here and '[0-9a-f]{16}' there"):
        run.build(crepa_encoder=str(encoder))


def test_another_preparation_of_pixels_is_refused(run: Run, tmp_path: Path) -> None:
    encoder = copied(run.encoder, tmp_path / "other", pretrained_cfg={"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(CacheMismatchError, match=r"preprocessing is '.*0\.5/0\.5/0\.5.*' here and '.*0\.485"):
        run.build(crepa_encoder=str(encoder))


def test_a_moved_encoder_is_the_same(run: Run, tmp_path: Path) -> None:
    """Only its name differs: what it holds, and makes of a picture, is the same."""
    before = contents(run.root)
    run.build(crepa_encoder=str(copied(run.encoder, tmp_path / "moved")))
    run.build(crepa_encoder=str(tmp_path / "moved" / "model.safetensors"))
    assert contents(run.root) == before


def test_options_that_change_no_feature_are_no_reason(run: Run) -> None:
    before = contents(run.root)
    run.build(crepa_lambda=0.1, crepa_projector="mlp", crepa_block_index=2, crepa_encoder_frames_batch_size=1)
    assert contents(run.root) == before


def test_rebuilding_replaces_the_features_alone(own: Run) -> None:
    own.build()
    before = contents(own.root)
    samples, features = own.build(crepa_encoder_image_size=84, rebuild=True)
    after = contents(own.root)
    assert after.keys() == before.keys()
    assert {path.relative_to(own.root).parts[1] for path in before if after[path] != before[path]} == {"features"}
    assert features.store.manifest()["identity"]["size"] == 84
    assert [features.grid(sample).tokens for sample in samples] == [36, 32, 32, 36]
    assert len(features.store.keys()) == len(samples)
    with pytest.raises(CacheMismatchError, match=r"size is 56 here and 84 there"):
        own.build()


def test_a_students_cell_counts_where_the_teacher_follows_it(own: Run) -> None:
    """A transformer's token covers 16 pixels here, half a cell of a UNet's middle 32: "auto" means other sizes."""
    own.build(crepa_encoder_image_size="auto")
    with pytest.raises(
        CacheMismatchError, match="size is 'auto, 32 pixels a token' here and 'auto, 16 pixels a token' there"
    ):
        own.build("sd1x", urepa_encoder_image_size="auto")


def test_another_student_reads_the_same_features(own: Run) -> None:
    """Of a size in pixels: they depend on pictures and teacher alone."""
    samples, features = own.build()
    before = contents(features.store.folder)
    _, others = own.build("sd1x")
    assert contents(features.store.folder) == before
    assert [others.record(sample) for sample in samples] == [features.record(sample) for sample in samples]


# How it is kept


@pytest.mark.parametrize(
    ("dtype", "kept", "worst"),
    [
        ("fp32", torch.float32, 1e-5),
        ("fp16", torch.float16, 1e-3),
        ("bf16", torch.bfloat16, 1e-2),
        ("int8", torch.int8, 2e-2),
    ],
)
def test_formats_are_near_the_teachers_tokens(own: Run, dtype: str, kept: torch.dtype, worst: float) -> None:
    samples, features = own.build(crepa_feature_cache_dtype=dtype)
    teacher = make_teacher(str(own.encoder), image_size=56)
    for sample in samples:
        expected, grid = teacher.encode(sample.pixels()[None])
        record = features.record(sample).read()
        assert features.grid(sample) == grid
        assert ((unpack(record) - expected[0]).norm(dim=-1) <= worst * expected[0].norm(dim=-1)).all()
        assert record["tokens"].dtype == kept
        assert features.stored_size(sample) == sum(part.nbytes for part in record.values())


def add_image(own: Run) -> None:
    """One that is unlike the others."""
    Image.new("RGB", (64, 64), "red").save(own.data / "9.png")
    (own.data / "9.txt").write_text("red")


def test_whitened_features_are_narrow_and_stay_so_when_images_are_added(own: Run) -> None:
    options = {"crepa_feature_cache_dim": 8, "crepa_feature_cache_dtype": "fp32"}
    samples, features = own.build(**options)
    assert features.width == 8
    tokens = own.tokens(samples, features)
    whitened = torch.cat([each.flatten(0, 1) for each in tokens])
    assert whitened.shape == (16 + 2 * 18 + 16, 8)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(whitened.T @ whitened / len(whitened), torch.eye(8), atol=1e-2, rtol=0)

    fitted = features.store.fitted()
    assert fitted is not None
    add_image(own)
    (*_, added), features = own.build(**options)
    again = features.store.fitted()
    assert again is not None and fitted.keys() == again.keys() == {"whitening_mean", "whitening_matrix"}
    assert all(torch.equal(fitted[name], again[name]) for name in fitted)
    assert all(torch.equal(a, b) for a, b in zip(tokens, own.tokens(samples, features), strict=True))
    raw, _ = make_teacher(str(own.encoder), image_size=56).encode(added.pixels()[None])
    expected = (raw[0] - fitted["whitening_mean"]) @ fitted["whitening_matrix"]
    torch.testing.assert_close(unpack(features.record(added).read()), expected, atol=1e-3, rtol=1e-3)


def test_the_statistics_of_efficientnet_are_measured_once(own: Run) -> None:
    options: dict[str, Any] = {"crepa_encoder": "efficientnet_lite0", "crepa_encoder_image_size": 64}
    options["crepa_feature_cache_dtype"] = "fp32"
    samples, features = own.build(**options)
    tokens = own.tokens(samples, features)
    mean = torch.cat([each.flatten(0, 1) for each in tokens]).mean(0)
    torch.testing.assert_close(mean, torch.zeros(432), atol=1e-2, rtol=0)
    teacher = make_teacher("efficientnet_lite0", image_size=64)
    teacher.standardise(sample.pixels()[None] for sample in samples)  # as a run without a cache does
    statistics = features.store.fitted()
    assert statistics is not None and statistics.keys() == teacher.state_dict().keys()
    assert all(torch.equal(statistics[name], value) for name, value in teacher.state_dict().items())

    add_image(own)
    (*_, added), features = own.build(**options)
    again = features.store.fitted()
    assert again is not None and all(torch.equal(statistics[name], again[name]) for name in statistics)
    assert all(torch.equal(a, b) for a, b in zip(tokens, own.tokens(samples, features), strict=True))
    expected, _ = teacher.encode(added.pixels()[None])
    torch.testing.assert_close(unpack(features.record(added).read()), expected[0], atol=1e-4, rtol=1e-4)


def test_a_cache_that_lost_its_whitening_is_refused(own: Run) -> None:
    """Another one would not fit what is there."""
    _, features = own.build(crepa_feature_cache_dim=8)
    path = features.store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["fitted"]
    path.write_text(json.dumps(manifest))
    own.build(crepa_feature_cache_dim=8)  # nothing is to be made
    add_image(own)
    with pytest.raises(CacheMismatchError, match=r"has lost what its features were fitted to.*--rebuild"):
        own.build(crepa_feature_cache_dim=8)


# What is refused before the work


def test_too_few_tokens_for_a_whitening(own: Run) -> None:
    """One square picture has 4 x 4 tokens: no more than dimensions."""
    for path in own.data.glob("[1-9].*"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"^crepa_feature_cache_dim: 16 whitened dimensions.*16 tokens.*Lower it"):
        own.build(crepa_feature_cache_dim=16)
    _, features = own.build(crepa_feature_cache_dim=8)  # nothing is in the way of what the message says
    assert features.width == 8


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small_is_told_before_the_work(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    foundation = own.foundation()
    samples = own.samples(foundation)
    features = features_of_run(foundation.config, foundation, samples)
    assert features is not None
    free, asked = sum(on_disk(features.stored_size(sample)) for sample in samples) - 1, set()

    def usage(folder: Path) -> Usage:
        asked.add(Path(folder))
        return Usage(2**40, 2**40 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(DatasetError, match=r"^cache_dir: the teacher's features need .* free") as refused:
        build(samples, foundation)
    for mend in ("encoder_image_size", "feature_cache_dtype to int8", "feature_cache_dim to 128", "feature_cache off"):
        assert f"crepa_{mend}" in str(refused.value)
    assert features.store.shards() == []
    assert asked == {features.store.folder}
    own.build(crepa_feature_cache_dtype="int8")  # nothing is in the way of what the message says
    free = 0
    own.build(crepa_feature_cache_dtype="int8")  # and nothing is missing any more


# Keys


def test_a_key_changes_with_all_that_the_teacher_sees(run: Run, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(100, 40)])

    def key(size: int | str = 56, **entry: Any) -> str:
        foundation = run.foundation(crepa_encoder_image_size=size)
        samples = scan(data, foundation.config, **entry)
        features = features_of_run(foundation.config, foundation, samples)
        assert features is not None
        return features.record(samples[0]).key

    plain = key()
    assert key() == plain
    others = [key(size=84), key(crop_aspect="square"), key(resolution=128.0), key(crop=False)]
    Image.new("RGB", (100, 40)).save(data / "0.png")
    others.append(key())
    assert plain not in others and len(set(others)) == len(others)


def test_a_key_changes_with_the_frames(make_foundation: MakeFoundation, run: Run, tmp_path: Path) -> None:
    """Which depend on the clip's length and stride, and on how many frames the autoencoder makes one of."""
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.mp4", numbered_frames(17, 64, 64))

    def key(family: str = "wan", **video: int) -> str:
        options = {"crepa_enabled": True, "crepa_encoder": str(run.encoder), "crepa_encoder_image_size": 56}
        foundation = make_foundation(family, **tiny_options(tmp_path), **options)
        entry = {"dataset_type": "video", "caption_strategy": "filename", "video": video}
        samples = scan(tmp_path / "clips", foundation.config, **entry)
        features = features_of_run(foundation.config, foundation, samples)
        assert features is not None
        return features.record(samples[0]).key

    keys = [key(num_frames=5), key(num_frames=9), key(num_frames=9, frame_stride=2), key("ltxvideo", num_frames=9)]
    assert len(set(keys)) == len(keys)


def test_a_cache_travels_to_processes_that_load(run: Run) -> None:
    samples, features = run.build()
    travelled = pickle.loads(pickle.dumps(features))
    for sample in samples:
        assert travelled.record(sample) == features.record(sample)
        assert travelled.grid(sample) == features.grid(sample)
        assert torch.equal(travelled.record(sample).read()["tokens"], features.record(sample).read()["tokens"])
