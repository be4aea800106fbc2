"""The caches hold what the foundation and the teacher encode, and only what is missing is encoded."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import PreTrainedModel

from simpletuner.helpers.data.build import Caches
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.features import features_of_run
from simpletuner.helpers.data.records import Record, Records
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.alignment.teachers import Teacher, make_teacher
from tests.conftest import MakeFoundation
from tests.helpers.data.caches import Watch, build, contents, damage, everything
from tests.helpers.data.files import numbered_frames, scan, tiny_options, write_clip, write_images

SIZES = [(64, 64), (96, 48), (64, 64), (64, 64)]
Aligned = Callable[..., ModelFoundation]


@pytest.fixture
def aligned(make_foundation: MakeFoundation, tiny_teacher: Path) -> Aligned:
    """`aligned("sd3", tmp_path)`: a foundation with a teacher, and its caches in `tmp_path`."""

    def make(folder: str, root: Path, **options: Any) -> ModelFoundation:
        prefix = "urepa" if folder == "sd1x" else "crepa"
        encoder = "model" if folder == "sd1x" else "encoder"
        own = {"enabled": True, encoder: str(tiny_teacher), "encoder_image_size": 56, "feature_cache_dtype": "fp32"}
        return make_foundation(
            folder, **{f"{prefix}_{name}": value for name, value in own.items()} | tiny_options(root) | options
        )

    return make


class Seen:
    """The images that were opened and the pixels that a teacher encoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.encoded: list[tuple[int, ...]] = []
        really_open, really_encode = Image.open, Teacher.encode

        def opened(path: Any, *arguments: Any, **options: Any) -> Image.Image:
            self.opened.append(Path(path).name)
            return really_open(path, *arguments, **options)

        def encoded(teacher: Teacher, pixels: Tensor, **options: Any) -> tuple[Tensor, TokenGrid]:
            self.encoded.append(tuple(pixels.shape))
            return really_encode(teacher, pixels, **options)

        monkeypatch.setattr(Image, "open", opened)
        monkeypatch.setattr(Teacher, "encode", encoded)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


# Latents and prompts


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_are_those_of_the_samples_pixels(tmp_path: Path, make_foundation: MakeFoundation, workers: int) -> None:
    foundation = make_foundation("sd3", **tiny_options(tmp_path, max_workers=workers))
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    records = build(samples, foundation).records
    for sample in samples:
        latents = records.latents(sample).read()["latents"]
        torch.testing.assert_close(latents, foundation.encode_pixels(sample.pixels()[None])[0])
    for prompt in ("", "picture 3"):
        (expected,) = foundation.encode_prompts([prompt])
        torch.testing.assert_close(records.prompt(prompt).read(), expected)


def test_second_build_loads_and_writes_nothing(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    caches = build(samples, foundation)
    assert foundation.vae is None  # freed
    assert [store.manifest()["records"] for store in caches.stores(samples)] == [len(SIZES), len(SIZES) + 1]
    written, watch = contents(tmp_path), Watch(foundation)
    for verify in (False, True):
        build(samples, foundation, verify=verify)
    assert contents(tmp_path) == written
    assert (watch.images, watch.prompts) == (0, 0)


def test_key_depends_on_all_that_changes_the_value(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    config = foundation.config
    data = write_images(tmp_path / "data", [(100, 40)])

    def places(config: Any = config, **changes: Any) -> tuple[Record, Record]:
        samples = scan(data, config, **changes)
        records = Records(config, samples)
        return records.latents(samples[0]), records.prompt("picture")

    latents, prompt = places()
    assert places() == (latents, prompt)
    for changes in ({"crop_aspect": "square"}, {"resolution": 128.0}, {"crop": False}):
        assert places(**changes)[0].key != latents.key
    other_model = make_foundation("sd3", **tiny_options(tmp_path)).config
    assert places(other_model)[0].store != latents.store
    assert places(other_model)[1].store != prompt.store
    half = make_foundation("sd1x", **tiny_options(tmp_path, mixed_precision="bf16")).config
    assert places(half)[0] == latents  # the VAE always works in fp32
    assert places(half)[1].store != prompt.store
    Image.new("RGB", (100, 40)).save(data / "0.png")
    assert places()[0].key != latents.key


def test_labels_of_classes_are_encoded_again_when_the_classes_change(
    tmp_path: Path, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation("dit_pixels", **tiny_options(tmp_path, resolution=16, aspect_bucket_alignment=8))

    def label(caption: str) -> Tensor:
        samples = scan(tmp_path / "data", foundation.config)
        return build(samples, foundation).records.prompt(caption).read()["class_labels"]

    data = write_images(tmp_path / "data", [(16, 16)] * 2)
    assert label("picture 1") == 1
    write_images(tmp_path / "data", [(16, 16)] * 2)
    (data / "0.txt").write_text("zebra")
    assert label("picture 1") == 0
    assert label("zebra") == 1


# Features


@pytest.mark.parametrize("size", [56, "auto"])
def test_features_are_the_teachers_of_the_samples_pixels(
    tmp_path: Path, aligned: Aligned, tiny_teacher: Path, size: int | str
) -> None:
    """Of images that are not square, in several buckets; "auto" gives the student's own grid."""
    foundation = aligned("sd3", tmp_path, crepa_encoder_image_size=size)
    samples = scan(write_images(tmp_path / "data", [(64, 64), (128, 64), (64, 128), (64, 64)]), foundation.config)
    assert len({sample.bucket for sample in samples}) == 3
    features = build(samples, foundation).features
    assert features is not None
    teacher = make_teacher(str(tiny_teacher), image_size=size)
    for sample in samples:
        rows, columns = sample.bucket.height // 16, sample.bucket.width // 16
        expected, grid = teacher.encode(sample.pixels()[None], student_grid=TokenGrid(1, rows, columns))
        assert features.grid(sample) == grid
        if size == "auto":
            assert (grid.height, grid.width) == (rows, columns)
        record = features.record(sample).read()
        assert record["tokens"].shape == (1, grid.tokens_per_frame, features.width)
        torch.testing.assert_close(unpack(record), expected[0], atol=1e-5, rtol=1e-5)


def test_a_mirrored_sample_has_features_of_its_own(tmp_path: Path, aligned: Aligned, tiny_teacher: Path) -> None:
    foundation = aligned("sd3", tmp_path)
    samples = scan(write_images(tmp_path / "data", [(96, 48)]), foundation.config, horizontal_flip=True)
    caches = build(samples, foundation)
    assert caches.features is not None
    upright, mirrored = (unpack(caches.features.record(sample).read()) for sample in samples)
    pixels = samples[0].pixels()[None]
    teacher = make_teacher(str(tiny_teacher), image_size=56)
    torch.testing.assert_close(upright, teacher.encode(pixels)[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mirrored, teacher.encode(pixels.flip(-1))[0][0], atol=1e-5, rtol=1e-5)
    assert (mirrored - upright).abs().max() > 0.1
    latents = caches.records.latents(samples[1]).read()["latents"]
    torch.testing.assert_close(latents, foundation.encode_pixels(pixels.flip(-1))[0])


def test_a_unets_teacher_has_twice_the_grid_of_the_middle(tmp_path: Path, aligned: Aligned, tiny_teacher: Path) -> None:
    foundation = aligned("sd1x", tmp_path, urepa_encoder_image_size="auto", resolution=128)
    samples = scan(write_images(tmp_path / "data", [(128, 128), (192, 96)]), foundation.config)
    features = build(samples, foundation).features
    assert features is not None
    teacher = make_teacher(str(tiny_teacher), image_size="auto")
    for sample in samples:
        latents = foundation.encode_pixels(sample.pixels()[None])
        rows, columns = (-(-side // 8) for side in latents.shape[-2:])
        expected, grid = teacher.encode(sample.pixels()[None], student_grid=TokenGrid(1, rows, columns), scale=2)
        assert features.grid(sample) == grid == TokenGrid(1, 2 * rows, 2 * columns)
        torch.testing.assert_close(unpack(features.record(sample).read()), expected[0], atol=1e-5, rtol=1e-5)


def test_clips_are_encoded_at_the_frames_that_the_teacher_sees(tmp_path: Path, aligned: Aligned, seen: Seen) -> None:
    """Mistake 11: 81 frames encoded and 21 used."""
    foundation = aligned("wan", tmp_path, resolution=32)
    (tmp_path / "data").mkdir()
    write_clip(tmp_path / "data" / "a.mp4", numbered_frames(9, 32, 32))
    clip = {"dataset_type": "video", "caption_strategy": "filename", "video": {"num_frames": 9}}
    samples = scan(tmp_path / "data", foundation.config, **clip)
    caches = build(samples, foundation)
    assert caches.features is not None
    assert caches.records.latents(samples[0]).read()["latents"].shape[1] == 3
    record = caches.features.record(samples[0])
    stored = unpack(record.read())
    assert stored.shape == (3, 16, 16)
    assert seen.encoded == [(1, 3, 3, 32, 32)]
    teacher = make_teacher(foundation.config.crepa.encoder, image_size=56)
    expected, _ = teacher.encode(samples[0].pixels([0, 4, 8])[None])
    torch.testing.assert_close(stored, expected[0], atol=1e-5, rtol=1e-5)
    # Alone, as with the latents: then no other frame is read.
    caches.features.store.remove()
    build(samples, foundation)
    torch.testing.assert_close(unpack(record.read()), stored)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once_for_all_that_is_made_of_it(
    tmp_path: Path, aligned: Aligned, seen: Seen, workers: int
) -> None:
    foundation = aligned("sd3", tmp_path, max_workers=workers)
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    seen.opened.clear()
    watch = Watch(foundation)
    build(samples, foundation)
    assert sorted(seen.opened) == [sample.path.name for sample in samples]
    assert watch.images == sum(batch for batch, *_ in seen.encoded) == len(samples)


def test_what_is_cached_is_not_made_again_beside_what_is_missing(tmp_path: Path, aligned: Aligned, seen: Seen) -> None:
    data = write_images(tmp_path / "data", SIZES[:2])
    plain = aligned("sd3", tmp_path, crepa_enabled=False)
    build(scan(data, plain.config), plain)
    before = contents(tmp_path / "caches" / "vae")

    foundation = aligned("sd3", tmp_path)
    samples = scan(data, foundation.config)
    watch = Watch(foundation)
    seen.opened.clear()
    build(samples, foundation)  # the features alone
    assert (watch.images, watch.prompts) == (0, 0) and foundation.vae is None
    assert sorted(seen.opened) == ["0.png", "1.png"]
    assert contents(tmp_path / "caches" / "vae") == before

    write_images(data, SIZES[:3])  # one more, for which both are missing
    samples = scan(data, foundation.config)
    seen.opened.clear()
    seen.encoded.clear()
    caches = build(samples, foundation)
    assert (watch.images, watch.prompts) == (1, 1)
    assert seen.opened == ["2.png"] and [batch for batch, *_ in seen.encoded] == [1]

    features = contents(tmp_path / "caches" / "features")
    for store in caches.records.latent_stores(samples):
        store.remove()
    seen.encoded.clear()
    build(samples, foundation)  # the latents alone
    assert watch.images == 1 + 3 and seen.encoded == []
    assert contents(tmp_path / "caches" / "features") == features
    assert len(everything(caches, samples)) == 3 + 3 + 4


def test_images_of_one_content_are_encoded_once(tmp_path: Path, aligned: Aligned, seen: Seen) -> None:
    data = write_images(tmp_path / "data", SIZES[:1])
    (data / "copy.png").write_bytes((data / "0.png").read_bytes())
    (data / "copy.txt").write_text("a copy")
    foundation = aligned("sd3", tmp_path)
    samples = scan(data, foundation.config)
    watch = Watch(foundation)
    caches = build(samples, foundation)
    assert caches.features is not None
    assert (watch.images, len(seen.encoded)) == (1, 1)
    assert caches.features.record(samples[0]) == caches.features.record(samples[1])


NO_FEATURES: dict[str, dict[str, Any]] = {
    "no alignment": {"crepa_enabled": False},
    "weight 0": {"crepa_lambda": 0.0},
    "weight 0 to 0": {"crepa_lambda": 0.0, "crepa_scheduler": "linear"},
    "tiny autoencoder": {"crepa_use_tae": True},
    "backbone": {"crepa_feature_source": "backbone", "crepa_teacher_block_index": 2},
    "no cache": {"crepa_feature_cache": False},
}


@pytest.mark.parametrize("options", NO_FEATURES.values(), ids=NO_FEATURES)
def test_no_features_where_no_step_reads_any(tmp_path: Path, aligned: Aligned, options: dict[str, Any]) -> None:
    """Not even a teacher that doesn't exist is missed."""
    foundation = aligned("sd3", tmp_path, crepa_encoder="timm/none_such", **options)
    samples = scan(write_images(tmp_path / "data", SIZES[:1]), foundation.config)
    assert features_of_run(foundation.config, foundation, samples) is None


def test_features_where_the_weight_rises_from_0(tmp_path: Path, aligned: Aligned) -> None:
    foundation = aligned("sd3", tmp_path, crepa_lambda=0.0, crepa_scheduler="linear", crepa_lambda_end=0.5)
    samples = scan(write_images(tmp_path / "data", SIZES[:1]), foundation.config)
    assert features_of_run(foundation.config, foundation, samples) is not None


def test_a_build_without_features_leaves_no_folder_for_them(tmp_path: Path, aligned: Aligned) -> None:
    foundation = aligned("sd3", tmp_path, crepa_feature_cache=False)
    caches = build(scan(write_images(tmp_path / "data", SIZES[:1]), foundation.config), foundation)
    assert caches.features is None
    assert not (tmp_path / "caches" / "features").exists()


def test_an_encoder_that_cannot_be_loaded_is_named_with_its_option(tmp_path: Path, aligned: Aligned) -> None:
    foundation = aligned("sd3", tmp_path, crepa_encoder="timm/none_such")
    samples = scan(write_images(tmp_path / "data", SIZES[:1]), foundation.config)
    with pytest.raises(ValueError, match=r"^crepa_encoder: .*timm/none_such"):
        build(samples, foundation)


def test_nothing_that_encodes_stays_in_memory(tmp_path: Path, aligned: Aligned) -> None:
    encoders = (AutoencoderKL, VisionTransformer, PreTrainedModel)

    def alive() -> list[object]:
        gc.collect()
        return [thing for thing in gc.get_objects() if issubclass(type(thing), encoders)]

    foundation = aligned("sd3", tmp_path)
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    before = alive()
    caches = build(samples, foundation)
    assert caches.features is not None
    assert [type(thing) for thing in alive() if not any(thing is other for other in before)] == []
    assert foundation.vae is None


# Damage


def samples_and_foundation(
    root: Path, make_foundation: MakeFoundation, teacher: Path
) -> tuple[list[Sample], ModelFoundation]:
    options = {"crepa_enabled": True, "crepa_encoder": str(teacher), "crepa_encoder_image_size": 56}
    foundation = make_foundation("sd3", **tiny_options(root), **options)
    return scan(write_images(root / "data", SIZES), foundation.config), foundation


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_foundation: MakeFoundation, tiny_teacher: Path) -> Path:
    """A folder with images and caches of three kinds."""
    root = tmp_path_factory.mktemp("pristine")
    build(*samples_and_foundation(root, make_foundation, tiny_teacher))
    return root


@pytest.fixture
def built(pristine: Path, tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path) -> Built:
    """Samples, foundation, and a copy of their caches that may be damaged."""
    shutil.copytree(pristine / "caches", tmp_path / "caches")
    samples, foundation = samples_and_foundation(tmp_path, make_foundation, tiny_teacher)
    return samples, foundation, build(samples, foundation)


Built = tuple[list[Sample], ModelFoundation, Caches]
KINDS = ["latents", "text", "features"]


def record_of(caches: Caches, sample: Sample, kind: str) -> Record:
    if kind == "features":
        assert caches.features is not None
        return caches.features.record(sample)
    # To the tiny tokenizers all the captions are the same, but not the empty prompt.
    return caches.records.latents(sample) if kind == "latents" else caches.records.prompt("")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_is_found_and_made_again_alone(
    built: Built, caplog: pytest.LogCaptureFixture, seen: Seen, kind: str, workers: int
) -> None:
    samples, foundation, caches = built
    before = everything(caches, samples)
    record = record_of(caches, samples[1], kind)
    damage(record)
    with pytest.raises(DatasetError, match=r"missing or damaged\. Run `simpletuner cache`"):
        record.read()
    build(samples, foundation)  # looks at nothing but the indices
    assert not record.intact()

    watch = Watch(foundation)
    foundation.config.max_workers = workers
    with caplog.at_level(logging.WARNING):
        build(samples, foundation, verify=True)
    assert caplog.messages == ["1 cached records were damaged and are made again."]
    assert (watch.images, watch.prompts, len(seen.encoded)) == tuple(int(kind == each) for each in KINDS)
    after = everything(caches, samples)
    assert after.keys() == before.keys()
    for key in before:
        torch.testing.assert_close(after[key], before[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_shard_is_made_again_without_being_asked(
    built: Built, caplog: pytest.LogCaptureFixture, seen: Seen, kind: str
) -> None:
    samples, foundation, caches = built
    before = everything(caches, samples)
    (shard,) = record_of(caches, samples[0], kind).store.shards()
    os.truncate(shard, shard.stat().st_size - 1)
    watch = Watch(foundation)
    with caplog.at_level(logging.WARNING):
        build(samples, foundation)
    assert caplog.messages == [f"{shard} was damaged and is removed; what it held is made again."]
    counts = {"latents": watch.images, "text": watch.prompts, "features": sum(batch for batch, *_ in seen.encoded)}
    assert counts == {"latents": 0, "text": 0, "features": 0} | {kind: 5 if kind == "text" else 4}
    after = everything(caches, samples)
    assert after.keys() == before.keys()
    for key in before:
        torch.testing.assert_close(after[key], before[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_manifest_is_refused_and_mended_as_its_message_says(built: Built, kind: str) -> None:
    samples, foundation, caches = built
    store = record_of(caches, samples[0], kind).store
    (store.folder / "manifest.json").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"manifest\.json is damaged.*`simpletuner cache --rebuild`"):
        build(samples, foundation)
    build(samples, foundation, rebuild=True)
    assert len(everything(caches, samples)) == 4 + 5 + 4


# What can't be encoded


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
