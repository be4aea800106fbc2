"""What training reads: cached latents and text, and the very pixels that were encoded."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.helpers.data.build import build_caches, cache_progress
from simpletuner.helpers.data.dataset import TrainingDataset, drops_caption, training_batches
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.sampler import BucketBatchSampler, Draw
from simpletuner.helpers.data.samples import Sample
from tests.conftest import MakeFoundation
from tests.helpers.data.files import numbered_frames, scan, tiny_options, write_clip, write_images

SIZES = [(100, 50), (64, 64), (120, 60), (70, 70), (64, 64)]


def cached(data: Path, foundation: Any, **changes: Any) -> list[Sample]:
    samples = scan(data, foundation.config, **changes)
    with cache_progress(enabled=False) as progress:
        build_caches(samples, foundation, foundation.config, progress)
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
    assert "pixels" not in batch


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
    for path in (tmp_path / "caches" / "vae").rglob("*.safetensors"):
        path.write_bytes(b"")
    dataset, sampler = TrainingDataset(samples, foundation.config), BucketBatchSampler(samples, 1, seed=0)
    with pytest.raises(DatasetError, match=r"\Acache_dir: .*; start the run again to rebuild it\.\Z"):
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
