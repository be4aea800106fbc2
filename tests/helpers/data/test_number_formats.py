"""The number formats of cached latents, and teacher tokens of unit length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.helpers.data.dataset import TrainingDataset
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.sampler import Draw
from simpletuner.helpers.data.store import MANIFEST, CacheMismatchError
from simpletuner.helpers.training.alignment.feature_cache import unpack
from tests.conftest import MakeFoundation
from tests.helpers.data.caches import Watch, build, contents
from tests.helpers.data.files import scan, tiny_options, write_images

SIZES = [(64, 64), (96, 64), (64, 64)]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_latents_are_kept_in_the_format_and_trained_in_fp32(
    dtype: str, tmp_path: Path, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation("sd1x", vae_cache_dtype=dtype, **tiny_options(tmp_path))
    samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
    records = build(samples, foundation).records
    dataset = TrainingDataset(samples, foundation.config)
    for index, sample in enumerate(samples):
        kept = records.latents(sample).read()["latents"]
        expected = foundation.encode_pixels(sample.pixels()[None])[0]
        assert kept.dtype == DTYPES[dtype]
        torch.testing.assert_close(kept, expected.to(DTYPES[dtype]), atol=1e-2, rtol=1e-2)
        item = dataset[Draw(index, 0)]
        batch = {"latents": item["latents"][None], "text": foundation.collate_text([item["text"]])}
        prepared = foundation.prepare_batch(batch, step=0, rows=[0])
        assert prepared["latents"].dtype == prepared["noisy_latents"].dtype == torch.float32
        torch.testing.assert_close(prepared["latents"][0], kept.float(), atol=0, rtol=0)


def test_formats_do_not_mix(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    """Each format has records of its own; those of fp32 lie where they lay before there was a choice."""
    data = write_images(tmp_path / "data", SIZES)
    made: dict[str, int] = {}
    for dtype in ("fp32", "fp16", "bf16", "fp32", "fp16"):
        foundation = make_foundation("sd1x", vae_cache_dtype=dtype, **tiny_options(tmp_path))
        watch = Watch(foundation)
        samples = scan(data, foundation.config)
        records = build(samples, foundation).records
        made[dtype] = made.get(dtype, 0) + watch.images
        assert {records.latents(sample).read()["latents"].dtype for sample in samples} == {DTYPES[dtype]}
    assert made == dict.fromkeys(DTYPES, len(SIZES))


def test_latents_too_large_for_fp16_are_an_error(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    for dtype in ("fp16", "bf16"):
        foundation = make_foundation("sd1x", vae_cache_dtype=dtype, **tiny_options(tmp_path))
        encode = foundation.encode_pixels

        def large(pixels: Tensor, encode: Any = encode) -> Tensor:
            return encode(pixels).sign() * 70_000

        foundation.encode_pixels = large  # type: ignore[method-assign]
        samples = scan(write_images(tmp_path / "data", SIZES), foundation.config)
        if dtype == "fp16":
            with pytest.raises(DatasetError, match=r"\d\.png: .* 7e\+04 are too large for fp16\. Set vae_cache_dtype"):
                build(samples, foundation)
            assert not contents(tmp_path)
        else:
            build(samples, foundation)


# Tokens of unit length


def aligned(make: MakeFoundation, root: Path, teacher: Path, **options: Any) -> Any:
    own = {"enabled": True, "model": str(teacher), "encoder_image_size": 56, **options}
    return make("sd1x", **tiny_options(root), **{f"urepa_{name}": value for name, value in own.items()})


@pytest.mark.parametrize(("dtype", "worst"), [("fp32", 1e-6), ("bf16", 5e-3), ("fp16", 1e-3), ("int8", 5e-3)])
def test_tokens_of_unit_length(
    dtype: str, worst: float, tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    data = write_images(tmp_path / "data", SIZES)
    kept = {}
    for normalized in (False, True):
        root = tmp_path / str(normalized)
        options: dict[str, Any] = {"feature_cache_normalized": normalized, "feature_cache_dtype": dtype}
        foundation = aligned(make_foundation, root, tiny_teacher, **options)
        samples = scan(data, foundation.config)
        features = build(samples, foundation).features
        assert features is not None
        kept[normalized] = [unpack(features.record(sample).read()).float() for sample in samples]
    for plain, unit in zip(kept[False], kept[True], strict=True):
        torch.testing.assert_close(unit.norm(dim=-1), torch.ones(unit.shape[:-1]), atol=worst, rtol=0)
        expected = torch.nn.functional.normalize(plain, dim=-1)
        torch.testing.assert_close(unit, expected, atol=4 * worst, rtol=0)
        assert (plain.norm(dim=-1) - 1).abs().min() > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_image_size": 84}, r"size is 84 here and 56 there \(see urepa_encoder_image_size\)"),
        ({"feature_cache_dim": 8}, r"width is 8 here and 16 there \(see urepa_feature_cache_dim\)"),
        (
            {"feature_cache_normalized": True},
            r"normalised is True here and False there \(see urepa_feature_cache_normalized\)",
        ),
    ],
    ids=["N", "D", "normalisation"],
)
def test_a_cache_of_other_tokens_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    data = write_images(tmp_path / "data", SIZES)
    foundation = aligned(make_foundation, tmp_path, tiny_teacher)
    samples = scan(data, foundation.config)
    build(samples, foundation)
    before = contents(tmp_path)
    other = aligned(make_foundation, tmp_path, tiny_teacher, **options)
    with pytest.raises(CacheMismatchError, match=words):
        build(samples, other)
    assert contents(tmp_path) == before


def test_a_cache_from_before_there_was_a_choice_is_of_plain_tokens(
    tmp_path: Path, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    """Its manifest doesn't say how long its tokens are."""
    data = write_images(tmp_path / "data", SIZES)
    foundation = aligned(make_foundation, tmp_path, tiny_teacher)
    samples = scan(data, foundation.config)
    features = build(samples, foundation).features
    assert features is not None
    manifest = features.store.manifest()
    del manifest["identity"]["normalised"]
    (features.store.folder / MANIFEST).write_text(json.dumps(manifest))
    before = contents(tmp_path)
    build(samples, aligned(make_foundation, tmp_path, tiny_teacher))
    with pytest.raises(CacheMismatchError, match="normalised is True here and False there"):
        build(samples, aligned(make_foundation, tmp_path, tiny_teacher, feature_cache_normalized=True))
    assert contents(tmp_path) == before
