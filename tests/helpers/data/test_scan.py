"""Folders become samples, and one bad file ends nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.scan import find_samples
from simpletuner.helpers.models.registry import FAMILIES
from tests.helpers.data.files import (
    make_config,
    make_entry,
    numbered_frames,
    picture,
    scan,
    write_clip,
    write_images,
)


def test_samples_are_sorted_and_bucketed(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(100, 100), (200, 100), (100, 220)])
    write_images(data / "sub", [(64, 64)])
    write_images(data / ".hidden", [(64, 64)])
    samples = scan(data, make_config(tmp_path), repeats=2)
    assert [sample.id for sample in samples] == ["set/0.png", "set/1.png", "set/2.png", "set/sub/0.png"]
    assert [sample.bucket for sample in samples] == [Bucket(64, 64), Bucket(96, 48), Bucket(48, 96), Bucket(64, 64)]
    assert [sample.caption for sample in samples] == ["picture 0", "picture 1", "picture 2", "picture 0"]
    assert {sample.repeats for sample in samples} == {2}


def test_entry_decides_size_and_crop(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(200, 100)])
    config = make_config(tmp_path)
    assert scan(data, config, crop_aspect="square")[0].bucket == Bucket(64, 64)
    assert scan(data, config, resolution=128.0)[0].bucket == Bucket(176, 96)
    assert scan(data, config, resolution=1 / 64, resolution_type="area")[0].bucket == Bucket(176, 96)
    assert scan(data, config, crop=False, crop_aspect="square")[0].bucket == Bucket(96, 48)
    assert scan(data, config, cache_dir_vae=str(tmp_path / "own"))[0].latent_folder == tmp_path / "own"


def test_bad_images_are_skipped_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_images(tmp_path / "data", [(64, 64)] * 4)
    (data / "1.png").write_bytes((data / "1.png").read_bytes()[:500])
    (data / "2.png").write_bytes(b"")
    assert [sample.id for sample in scan(data, make_config(tmp_path, max_workers=2))] == ["set/0.png", "set/3.png"]
    assert "skipped 2 of 4 files" in caplog.text
    assert "1.png" in caplog.text
    assert "2.png" in caplog.text


def test_empty_and_missing_captions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_images(tmp_path / "data", [(64, 64)] * 3)
    (data / "0.txt").write_text("")
    (data / "1.txt").unlink()
    assert [sample.caption for sample in scan(data, make_config(tmp_path))] == ["", "", "picture 2"]
    assert f"1 captions are empty and count as the empty prompt: {data / '0.txt'}" in caplog.text
    assert f"1 captions are missing and count as the empty prompt: {data / '1.txt'}" in caplog.text


def test_strategy_that_finds_no_caption_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    picture(64, 64).save(data / "a.png")
    with pytest.raises(DatasetError, match=r"caption_strategy 'textfile' of 'set'"):
        scan(data, make_config(tmp_path))


@pytest.mark.parametrize("content", [None, [], ["notes.md"], ["broken.png"]])
def test_folder_without_samples_names_option_and_folder(tmp_path: Path, content: list[str] | None) -> None:
    data = tmp_path / "data"
    if content is not None:
        data.mkdir()
        for name in content:
            (data / name).write_text("not a picture")
    with pytest.raises(DatasetError, match=f"instance_data_dir of 'set'.*{data}"):
        scan(data, make_config(tmp_path))


def test_resolution_below_the_alignment_is_an_error(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(64, 64)])
    with pytest.raises(DatasetError, match="resolution of 'set': 8 pixels are less than aspect_bucket_alignment"):
        scan(data, make_config(tmp_path), resolution=8.0)


def test_clips_are_shortened_to_what_the_vae_takes_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for count in (4, 8, 20):
        write_clip(data / f"{count:02}.mp4", numbered_frames(count))
    samples = find_samples(
        [
            make_entry(
                data,
                dataset_type="video",
                caption_strategy="filename",
                video={"num_frames": 9, "min_frames": 5, "frame_stride": 1},
            )
        ],
        make_config(tmp_path),
        FAMILIES["wan"],
    )
    assert [(sample.bucket.frames, sample.latent_frames) for sample in samples] == [(5, 2), (9, 3)]
    assert "04.mp4: gives 1 frames at frame_stride 1, 5 are needed" in caplog.text


def test_without_min_frames_clips_have_full_length(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for count in (8, 17):
        write_clip(data / f"{count:02}.mp4", numbered_frames(count))
    entry = make_entry(
        data, dataset_type="video", caption_strategy="filename", video={"num_frames": 9, "frame_stride": 2}
    )
    samples = find_samples([entry], make_config(tmp_path), FAMILIES["wan"])
    assert [sample.path.name for sample in samples] == ["17.mp4"]
    pixels = samples[0].pixels()
    assert (pixels.mean((1, 2, 3)) * 255).tolist() == pytest.approx(np.arange(0, 180, 20).tolist(), abs=1)


def test_second_scan_opens_no_unchanged_file(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(64, 64), (64, 64)])
    config = make_config(tmp_path)
    first = scan(data, config)
    index = tmp_path / "caches" / "files.jsonl"
    with index.open("a") as lines:
        lines.write('\n{"path": "torn')
    status = (data / "0.png").stat()
    (data / "0.png").write_bytes(b"x" * status.st_size)  # unreadable now, but as large and as old as before
    os.utime(data / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scan(data, config) == first
    (data / "1.png").write_bytes((data / "0.png").read_bytes())
    with pytest.raises(DatasetError, match=r"none of the 1 files"):
        (data / "0.png").unlink()
        scan(data, config)
