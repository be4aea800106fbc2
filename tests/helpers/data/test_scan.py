"""Folders become samples, and one bad file ends nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from simpletuner.configuration import Config
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
    tiny_options,
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


def test_file_that_is_replaced_after_the_scan_is_named(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(64, 64)])
    (sample,) = scan(data, make_config(tmp_path))
    picture(200, 100).save(data / "0.png")
    with pytest.raises(
        DatasetError, match=r"0\.png: has 200×100 pixels now, not 64×64\. It could be read when it was scanned"
    ):
        sample.pixels()


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", [(64, 64)])
    elsewhere = write_images(tmp_path / "elsewhere", [(64, 64)])
    (data / "linked").symlink_to(elsewhere)
    (data / "self").symlink_to(data)
    (elsewhere / "back").symlink_to(data)
    samples = scan(data, make_config(tmp_path))
    assert [sample.id for sample in samples] == ["set/0.png", "set/linked/0.png"]


def test_media_of_other_formats_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_images(tmp_path / "data", [(64, 64)])
    for name in ("a.heic", "b.AVIF", "c.mpg", ".d.jxl", "notes.md"):
        (data / name).touch()
    assert len(scan(data, make_config(tmp_path))) == 1
    assert "set: ignored 3 files of formats that are not read; convert them: " in caplog.text
    assert "a.heic" in caplog.text and "notes.md" not in caplog.text


def test_buckets_that_the_model_has_no_positions_for_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part, facts in {"transformer": {"pos_embed_max_size": 6, "patch_size": 2}, "vae": {}}.items():
        (tmp_path / "model" / part).mkdir(parents=True)
        (tmp_path / "model" / part / "config.json").write_text(json.dumps(facts))
    data = write_images(tmp_path / "data", [(64, 64), (200, 100), (400, 100)])
    options = tiny_options(tmp_path, pretrained_model_name_or_path=str(tmp_path / "model"))
    samples = scan(data, Config(model_family="sd3", **options))
    assert [sample.bucket for sample in samples] == [Bucket(64, 64), Bucket(96, 48)]
    assert "skipped 1 of 3 files" in caplog.text
    assert "2.png: would be 128×32 pixels, and the model has positions for 96 a side" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "crop_aspect of 'set' is 'preserve'.*Set crop_aspect to 'square'"),
        ({"crop": False, "crop_aspect": "square"}, "crop of 'set' is false.*Set crop to true and crop_aspect to"),
    ],
)
def test_square_families_name_what_is_in_the_way(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    data = write_images(tmp_path / "data", [(200, 100)])
    with pytest.raises(DatasetError, match=words):
        scan(data, make_config(tmp_path, model_family="dit"), **values)


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


def test_mirrored_samples_are_their_own(tmp_path: Path) -> None:
    """The pixels that are cached, for the autoencoder and the teacher alike, are the mirrored ones."""
    data, config = write_images(tmp_path / "data", [(64, 32), (48, 48)]), make_config(tmp_path)
    samples = scan(data, config, horizontal_flip=True)
    assert [sample.mirrored for sample in samples] == [False, True, False, True]
    assert len({sample.id for sample in samples}) == 4
    for plain, mirrored in zip(samples[::2], samples[1::2], strict=True):
        assert torch.equal(mirrored.pixels(), plain.pixels().flip(-1))
        assert mirrored.cut != plain.cut
        assert (mirrored.bucket, mirrored.caption) == (plain.bucket, plain.caption)


# Lists of images


def write_list(folder: Path, *paths: str) -> dict[str, Any]:
    """A list of these files, of one class; returns what the data set then has."""
    rows = [f"{number},{path},0,n1" for number, path in enumerate(paths)]
    (folder / "list.csv").write_text("\n".join(["id,img_path,class_id,synset", *rows]))
    (folder / "names.json").write_text('{"n1": "tench"}')
    return {"caption_strategy": "class", "metadata_file": "list.csv", "class_names": "names.json"}


def test_only_what_is_listed_is_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_images(tmp_path / "data", [(64, 64)] * 4)
    write_images(data / "sub", [(64, 64)])
    (data / "other.heic").touch()
    (data / "3.png").write_bytes(b"broken, but not listed")
    options = write_list(data, "2.png", "sub/0.png", "0.png")
    samples = scan(data, make_config(tmp_path), **options)
    assert [sample.id for sample in samples] == ["set/0.png", "set/2.png", "set/sub/0.png"]
    assert {sample.caption for sample in samples} == {"a photo of a tench"}
    assert caplog.text == ""


def test_listed_files_that_are_missing_are_counted_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_images(tmp_path / "data", [(64, 64)] * 2)
    (data / "1.png").write_bytes(b"")
    options = write_list(data, "0.png", "1.png", "gone/2.png", "gone/3.png", "4.heic")
    assert len(scan(data, make_config(tmp_path), **options)) == 1
    assert "set: 2 files that list.csv lists are missing and are left out: " in caplog.text
    assert "gone/3.png" in caplog.text
    assert "set: skipped 1 of 2 files: " in caplog.text
    assert "set: ignored 1 files of formats" in caplog.text


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["gone/2.png"], "instance_data_dir of 'set': none of the 1 files that list.csv lists is below.*img_path"),
        (["notes.md"], "metadata_file of 'set': list.csv lists no image"),
        ([], "metadata_file of 'set': list.csv lists no image"),
        (["broken.png", "gone.png"], "none of the 1 files in .* is usable: .*broken.png"),
    ],
)
def test_lists_of_nothing_usable_are_errors(tmp_path: Path, paths: list[str], words: str) -> None:
    data = write_images(tmp_path / "data", [(64, 64)])
    (data / "broken.png").touch()
    with pytest.raises(DatasetError, match=words):
        scan(data, make_config(tmp_path), **write_list(data, *paths))


# Cuts


def test_crop_pct_is_part_of_the_cut(tmp_path: Path) -> None:
    """What was cached with another cut isn't found; and what was cached before there was the option, still is."""
    data, config = write_images(tmp_path / "data", [(100, 80)]), make_config(tmp_path)
    (whole,) = scan(data, config, crop_aspect="square")
    (cut,) = scan(data, config, crop_aspect="square", crop_pct=0.8)
    assert whole.cut == (whole.digest, (64, 64, 1), ((10.0, 0.0, 90.0, 80.0), (0, 8)), 1, False)
    assert cut.placement.box == pytest.approx((18, 8, 82, 72))  # the same 64 pixels at their own size
    assert cut.cut != whole.cut and cut.bucket == whole.bucket
    picture_of = np.asarray(picture(100, 80, 0))[8:72, 18:82]
    assert torch.equal(cut.pixels()[0], torch.from_numpy(picture_of.copy()).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 401), (256, 256)])
def test_crop_pct_gives_what_torchvisions_transforms_give(tmp_path: Path, width: int, height: int) -> None:
    """A smooth picture cut by Resize(256, bicubic) and CenterCrop(224), up to the rounding to whole pixels."""
    rows, columns = np.mgrid[0:height, 0:width]
    values = [np.sin(columns / 40), np.cos(rows / 55), np.sin((rows + columns) / 70)]
    data = tmp_path / "data"
    data.mkdir()
    source = Image.fromarray(np.rint(np.stack(values, -1) * 127 + 128).astype(np.uint8))
    source.save(data / "0.png")
    options = {"crop_aspect": "square", "caption_strategy": "filename", "resolution": 224.0, "crop_pct": 0.875}
    (sample,) = scan(data, make_config(tmp_path), **options)
    wanted = v2.functional.center_crop(
        v2.functional.resize(source, [256], v2.InterpolationMode.BICUBIC, antialias=True), [224, 224]
    )
    difference = sample.pixels()[0] - v2.functional.pil_to_tensor(wanted) / 255
    assert difference.abs().max() < 0.03 and difference.abs().mean() < 0.008
