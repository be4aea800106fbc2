"""What the caches will take is told beforehand, and holds."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simpletuner.cli import main
from simpletuner.configuration.cache_sizes import on_disk
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.estimate import Estimate, estimate, feature_sizes, formats_table, parts_table
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.sizes import latent_shapes, prompt_bytes
from tests.conftest import MakeFoundation
from tests.helpers.data.caches import build
from tests.helpers.data.files import scan, tiny_options, write_images
from tests.runs import run, write_config

MakeRun = Callable[..., tuple[ModelFoundation, list[Sample]]]


@pytest.fixture
def make_run(tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path) -> MakeRun:
    """A U-REPA run over seven images in two buckets."""
    data = write_images(tmp_path / "data", [(128, 128)] * 4 + [(192, 96)] * 3)

    def make(**changes: Any) -> tuple[ModelFoundation, list[Sample]]:
        options = {"urepa_enabled": True, "urepa_model": str(tiny_teacher), "urepa_encoder_image_size": 196}
        foundation = make_foundation("sd1x", **tiny_options(tmp_path, resolution=128) | options | changes)
        return foundation, scan(data, foundation.config)

    return make


def estimated(foundation: ModelFoundation, samples: list[Sample], **how: Any) -> Estimate:
    shapes = latent_shapes(foundation, {sample.bucket for sample in samples})
    return estimate(
        samples,
        foundation,
        foundation.config,
        latent_bytes=lambda bucket: math.prod(shapes[bucket]) * 4,
        prompt_bytes=prompt_bytes(foundation),
        **how,
    )


def printed(*parts: Any) -> str:
    console = Console(width=150, file=io.StringIO())
    with console.capture() as captured:
        console.print(*parts)
    return captured.get()


def test_before_and_after_caching(make_run: MakeRun, tmp_path: Path) -> None:
    foundation, samples = make_run()
    before = estimated(foundation, samples)
    counts = [(part.kind, part.there, part.missing) for part in before.parts]
    assert counts == [("latents", 0, 7), ("prompts", 0, 8), ("features", 0, 7)]
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["files.jsonl"]  # of the scan

    caches = build(samples, foundation)
    for part, store in zip(before.parts, caches.stores(samples), strict=True):
        assert part.folder == store.folder
        (shard,) = store.shards()
        # Besides its records, LMDB has pages for itself, and some that it used while it wrote.
        assert part.needed <= shard.stat().st_size <= part.needed + 12 * 4096, part.kind
    after = estimated(foundation, samples)
    assert [(part.there, part.missing) for part in after.parts] == [(7, 0), (8, 0), (7, 0)]
    assert after.needed == 0 < before.needed <= before.free


def test_what_is_missing_is_counted(make_run: MakeRun) -> None:
    foundation, samples = make_run()
    build(samples[2:], foundation)
    found = estimated(foundation, samples, more_prompts=["a cat", "picture 3"])
    assert [(part.kind, part.there, part.missing) for part in found.parts] == [
        ("latents", 5, 2),
        ("prompts", 6, 3),
        ("features", 5, 2),
    ]


def test_without_a_teacher_there_are_no_features(make_run: MakeRun) -> None:
    foundation, samples = make_run(urepa_lambda=0.0)
    found = estimated(foundation, samples)
    assert found.features is None and [part.kind for part in found.parts] == ["latents", "prompts"]


def test_another_teachers_cache_is_refused_as_caching_does(make_run: MakeRun) -> None:
    build(*reversed(make_run()))
    with pytest.raises(DatasetError, match=r"size is 56 here and 196 there"):
        estimated(*make_run(urepa_encoder_image_size=56))


def test_features_by_format_and_width(make_run: MakeRun) -> None:
    foundation, samples = make_run(urepa_feature_cache_dim=8, urepa_feature_cache_dtype="fp32")
    features = estimated(foundation, samples).features
    assert features is not None
    sizes = feature_sizes(features, samples)
    assert list(sizes) == [16, 8] and list(sizes[16]) == ["bf16", "fp16", "int8", "fp32"]
    tokens = [14 * 14] * 4 + [features.grid(samples[-1]).tokens] * 3
    assert sizes[8]["fp32"] == pytest.approx(sum(on_disk(count * 8 * 4) for count in tokens) / 7)
    assert sizes[16]["int8"] == pytest.approx(sum(on_disk(count * (16 + 4)) for count in tokens) / 7)
    shown = printed(formats_table(features, samples, 7000))
    assert "Teacher features of 7,000 samples by urepa_feature_cache_dtype and urepa_feature_cache_dim" in shown
    assert shown.count(" *") == 1 and "*" in next(line for line in shown.splitlines() if "fp32" in line)


def test_so_many_samples(make_run: MakeRun) -> None:
    foundation, samples = make_run()
    shown = printed(parts_table(estimated(foundation, samples), 200_000))
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "200,000 samples" in rows["Cache"]
    assert "1.53 GiB" in rows["latents"]  # 4 x 16 x 16 numbers in fp32 and what belongs to them: two pages each
    assert "KiB" in rows["prompts"]  # of as many prompts as there are


def test_what_only_encoding_tells_is_said(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    data = write_images(tmp_path / "data", [(64, 64)])
    foundation = make_foundation("sd3", **tiny_options(tmp_path))
    samples = scan(data, foundation.config)
    text = estimated(foundation, samples).parts[1]
    assert text.size is None and text.needed == 0
    assert "known once encoded" in printed(parts_table(estimated(foundation, samples)))
    build(samples, foundation)
    size = estimated(foundation, samples).parts[1].size
    assert size is not None and size > 1000


def test_dry_run_encodes_nothing(tmp_path: Path, tiny_folder: Callable[[str], Path], tiny_teacher: Path) -> None:
    options = {"aspect_bucket_alignment": 64, "urepa_enabled": True, "urepa_model": str(tiny_teacher)}
    config = write_config(tmp_path, tiny_folder("sd1x"), **options)
    done = run("-m", "simpletuner.cli", "cache", "--config", str(config), "--dry-run", "--samples", "1000")
    assert done.returncode == 0 and done.stderr == ""
    for words in (
        "latents",
        "prompts",
        "features",
        "1,000 samples",
        "bf16",
        "To be made: ",
        f"{tmp_path / 'caches'}: ",
    ):
        assert words in done.stdout
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["files.jsonl"]


def test_samples_are_for_dry_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--config", str(tmp_path / "config.json"), "--samples", "1000"]) == 2
    assert capsys.readouterr().err == "error: --samples is for --dry-run, which estimates and encodes nothing.\n"
    with pytest.raises(SystemExit):
        main(["cache", "--dry-run", "--rebuild"])
    assert "not allowed with argument --dry-run" in capsys.readouterr().err


def test_a_teacher_that_is_not_there_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    foundation, samples = make_run(urepa_model=str(tmp_path / "gone.safetensors"))
    with pytest.raises(ValueError, match="urepa_model: "):
        estimated(foundation, samples)
