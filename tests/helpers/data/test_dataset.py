"""What training reads: cached latents and text, and the very pixels that were encoded."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.helpers.data.dataset import TrainingDataset, collate, drops_caption, training_batches
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.records import Records
from simpletuner.helpers.data.sampler import BucketBatchSampler, Draw
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from tests.conftest import MakeFoundation
from tests.helpers.data.caches import build, damage
from tests.helpers.data.files import numbered_frames, scan, tiny_options, write_clip, write_images

SIZES = [(100, 50), (64, 64), (120, 60), (70, 70), (64, 64)]


def cached(data: Path, foundation: Any, **changes: Any) -> list[Sample]:
    samples = scan(data, foundation.config, **changes)
    build(samples, foundation)
    return samples


def test_pixels_are_exactly_the_crop_that_was_encoded(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3", **tiny_options(tmp_path))
    samples = cached(write_images(tmp_path / "data", SIZES), foundation)
    dataset = TrainingDataset(samples, foundation.config, frame_indices=foundation.frame_indices)
    for index in range(len(dataset)):
        item = dataset[Draw(index, epoch=0)]
        assert item["pixels"].shape[-2:] == tuple(item["target_size"].tolist())
        latents = foundation.encode_pixels(item["pixels"][None])
        torch.testing.assert_close(latents[0], item["latents"])


def test_clips_give_only_the_frames_that_the_teacher_sees(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    """Mistake 11: 81 frames encoded and 21 used."""
    foundation = make_foundation("wan", **tiny_options(tmp_path, resolution=32))
    data = tmp_path / "data"
    data.mkdir()
    write_clip(data / "a.mp4", numbered_frames(9, 32, 32))
    clip = {"dataset_type": "video", "caption_strategy": "filename", "video": {"num_frames": 9}}
    samples = cached(data, foundation, **clip)
    item = TrainingDataset(samples, foundation.config, frame_indices=foundation.frame_indices)[Draw(0, 0)]
    assert item["latents"].shape[1] == 3
    assert (item["pixels"].mean((1, 2, 3)) * 255).tolist() == pytest.approx([0, 40, 80], abs=1)
    torch.testing.assert_close(foundation.encode_pixels(samples[0].pixels()[None])[0], item["latents"])


def test_batches_are_collated_and_have_no_pixels_unless_asked(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3", **tiny_options(tmp_path))
    samples = cached(write_images(tmp_path / "data", [(128, 64)] * 3), foundation)
    dataset = TrainingDataset(samples, foundation.config)
    sampler = BucketBatchSampler(samples, 2, seed=0)
    batch = next(training_batches(dataset, sampler, foundation.collate_text, max_workers=0))
    assert batch["latents"].shape == (2, 16, 6, 12)
    assert batch["text"]["prompt_embeds"].shape[0] == 2
    assert batch["captions"] == [f"picture {name[4]}" for name in batch["sample_ids"]]
    assert batch["original_sizes"].tolist() == [[64, 128]] * 2
    assert batch["target_sizes"].tolist() == [[48, 96]] * 2
    assert batch["crops"].tolist() == [[0, 0]] * 2
    assert not batch.keys() & {"pixels", "features", "feature_grid"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_batches_hold_the_teachers_features_as_they_are_kept(
    tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path, workers: int, dtype: str
) -> None:
    options = {"crepa_enabled": True, "crepa_encoder": str(tiny_teacher), "crepa_encoder_image_size": 56}
    foundation = make_foundation("sd3", **tiny_options(tmp_path), **options, crepa_feature_cache_dtype=dtype)
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    features = build(samples, foundation).features
    assert features is not None
    dataset = TrainingDataset(samples, foundation.config, features=features)
    by_id = {sample.id: sample for sample in samples}
    batches = training_batches(
        dataset, BucketBatchSampler(samples, 2, seed=0), foundation.collate_text, max_workers=workers
    )
    seen = set()
    for batch in islice(batches, 4):  # all buckets
        rows = [features.record(by_id[name]).read() for name in batch["sample_ids"]]
        assert batch["features"].keys() == rows[0].keys() == ({"tokens", "scale"} if dtype == "int8" else {"tokens"})
        for name, part in batch["features"].items():
            assert part.dtype == rows[0][name].dtype
            assert torch.equal(part, torch.stack([row[name] for row in rows]))
        assert batch["feature_grid"] == features.grid(by_id[batch["sample_ids"][0]])
        assert unpack(batch["features"]).shape == (2, 1, batch["feature_grid"].tokens, 16)
        assert "pixels" not in batch
        seen.add(batch["feature_grid"])
    assert len(seen) == 2
    batches.close()


def test_features_of_a_clip_have_its_frames(
    tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    options = {"crepa_enabled": True, "crepa_encoder": str(tiny_teacher), "crepa_encoder_image_size": 28}
    foundation = make_foundation("wan", **tiny_options(tmp_path, resolution=32), **options)
    data = tmp_path / "data"
    data.mkdir()
    write_clip(data / "a.mp4", numbered_frames(9, 32, 32))
    write_clip(data / "b.mp4", numbered_frames(9, 32, 32)[::-1])
    clip = {"dataset_type": "video", "caption_strategy": "filename", "video": {"num_frames": 9}}
    samples = scan(data, foundation.config, **clip)
    dataset = TrainingDataset(samples, foundation.config, features=build(samples, foundation).features)
    batch = collate([dataset[Draw(0, 0)], dataset[Draw(1, 0)]])
    assert batch["feature_grid"] == TokenGrid(3, 2, 2)
    assert batch["features"]["tokens"].shape == (2, 3, 4, 16)
    assert batch["latents"].shape[2] == 3


def test_stream_resumes_exactly_although_workers_fetch_ahead(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    options = tiny_options(tmp_path, caption_dropout_probability=0.5)
    foundation = make_foundation("sd1x", **options)
    samples = cached(write_images(tmp_path / "data", SIZES), foundation)

    def stream(sampler: BucketBatchSampler, count: int, workers: int) -> list[tuple[list[str], list[str]]]:
        dataset = TrainingDataset(samples, foundation.config, frame_indices=foundation.frame_indices)
        batches = training_batches(dataset, sampler, foundation.collate_text, max_workers=workers)
        return [(batch["sample_ids"], batch["captions"]) for batch in islice(batches, count)]

    uninterrupted = stream(BucketBatchSampler(samples, 2, seed=0), 8, workers=0)
    interrupted, resumed = (BucketBatchSampler(samples, 2, seed=0) for _ in range(2))
    start = stream(interrupted, 4, workers=1)
    resumed.load_state_dict(interrupted.state_dict())
    assert start + stream(resumed, 4, workers=1) == uninterrupted


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_record_is_named_in_one_line(tmp_path: Path, make_foundation: MakeFoundation, workers: int) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    samples = cached(write_images(tmp_path / "data", SIZES[:1]), foundation)
    damage(Records(foundation.config, samples).latents(samples[0]))
    dataset, sampler = TrainingDataset(samples, foundation.config), BucketBatchSampler(samples, 1, seed=0)
    with pytest.raises(DatasetError, match=r"\A/.*/vae/.* is missing or damaged\. Run `simpletuner cache` .*\.\Z"):
        next(training_batches(dataset, sampler, foundation.collate_text, max_workers=workers))


def test_place_beyond_the_epoch_is_an_error(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    """An epoch that gives nothing would be asked for the next batch for ever."""
    foundation = make_foundation("sd1x", **tiny_options(tmp_path))
    samples = cached(write_images(tmp_path / "data", SIZES[:1]), foundation)
    sampler = BucketBatchSampler(samples, 1, seed=0)
    sampler.position = 3
    with pytest.raises(DatasetError, match=r"1 batches.*from 3 on.*output_dir"):
        next(training_batches(TrainingDataset(samples, foundation.config), sampler, lambda text: {}, max_workers=0))


def test_dropped_captions_use_the_empty_prompt(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", **tiny_options(tmp_path, caption_dropout_probability=1.0))
    samples = cached(write_images(tmp_path / "data", SIZES[:1]), foundation)
    item = TrainingDataset(samples, foundation.config)[Draw(0, 0)]
    assert item["caption"] == ""
    torch.testing.assert_close(item["text"], foundation.encode_prompts([""])[0])


@given(st.floats(0, 1), st.integers(0, 2**32), st.integers(0, 1000))
def test_dropout_is_a_function_of_seed_epoch_and_sample(probability: float, seed: int, epoch: int) -> None:
    assert drops_caption(probability, seed, epoch, "a") == drops_caption(probability, seed, epoch, "a")
    assert not drops_caption(0.0, seed, epoch, "a")
    assert drops_caption(1.0, seed, epoch, "a")


def test_dropout_has_the_probability_asked_for_and_varies() -> None:
    drops = [drops_caption(0.3, 0, epoch, str(sample)) for epoch in range(10) for sample in range(1000)]
    assert sum(drops) / len(drops) == pytest.approx(0.3, abs=0.02)
    assert drops[:1000] != drops[1000:2000]
    assert drops[:1000] != [drops_caption(0.3, 1, 0, str(sample)) for sample in range(1000)]
