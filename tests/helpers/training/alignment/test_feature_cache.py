"""Cached features: how near they are to what was encoded, what they take, and what they depend on."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from simpletuner.configuration.alignment_shared import CacheType
from simpletuner.helpers.training.alignment.encoders import EncoderFacts
from simpletuner.helpers.training.alignment.feature_cache import (
    Whitening,
    cache_identity,
    fit_whitening,
    pack,
    stored_bytes,
    unpack,
)
from simpletuner.helpers.training.alignment.geometry import TokenGrid

FORMATS: tuple[CacheType, ...] = get_args(CacheType)
# The largest error of a number, as a share of itself: half of the last place that the format keeps.
ROUNDING = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 0.0}


def features(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", ROUNDING)
@settings(deadline=None)
@given(scale=st.floats(1e-2, 1e3), seed=st.integers(0, 1000))
def test_numbers_are_rounded_once(dtype: CacheType, scale: float, seed: int) -> None:
    tokens = features(2, 3, 5, 16, scale=scale, seed=seed)
    restored = unpack(pack(tokens, dtype)).float()
    assert restored.shape == tokens.shape
    smallest = 2.0**-25 if dtype == "fp16" else 0.0  # below its normal numbers fp16 keeps fixed steps
    assert ((restored - tokens).abs() <= tokens.abs() * ROUNDING[dtype] + smallest).all()


@settings(deadline=None)
@given(scale=st.floats(1e-3, 1e4), seed=st.integers(0, 1000))
def test_int8_rounds_to_the_127th_of_each_tokens_largest_number(scale: float, seed: int) -> None:
    tokens = features(2, 1, 7, 32, scale=scale, seed=seed)
    restored = unpack(pack(tokens, "int8"))
    step = tokens.abs().amax(-1, keepdim=True) / 127
    assert ((restored - tokens).abs() <= step * 0.501).all()


def test_an_outlier_costs_only_its_own_token_precision() -> None:
    """DINOv2's tokens have norms that differ a hundredfold: one scale for all would leave nothing of the small ones."""
    tokens = features(1, 1, 6, 32)
    alone = unpack(pack(tokens, "int8"))
    spoilt = tokens.clone()
    spoilt[0, 0, 2] *= 1e4
    restored = unpack(pack(spoilt, "int8"))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(restored[0, 0, others], alone[0, 0, others])
    torch.testing.assert_close(restored[0, 0, 2], spoilt[0, 0, 2], atol=spoilt[0, 0, 2].abs().max() / 253, rtol=0)


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 1e-5), ("fp16", 1e-6), ("int8", 1e-3)])
def test_directions_hardly_change(dtype: CacheType, error: float) -> None:
    """The losses are of directions: this is what they see."""
    tokens = features(4, 1, 64, 384)
    cosine = torch.cosine_similarity(unpack(pack(tokens, dtype)).double(), tokens.double(), dim=-1)
    assert (1 - cosine).max() < error


@pytest.mark.parametrize("dtype", FORMATS)
def test_zeros_stay_zeros(dtype: CacheType) -> None:
    tokens = features(1, 1, 3, 8)
    tokens[0, 0, 1] = 0
    restored = unpack(pack(tokens, dtype))
    assert restored.isfinite().all()
    assert not restored[0, 0, 1].any() and restored[0, 0, [0, 2]].all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_are_refused(dtype: CacheType, bad: float) -> None:
    tokens = features(2, 1, 3, 8)
    tokens[1, 0, 2, 5] = bad
    with pytest.raises(ValueError, match=f"not finite in {dtype}"):
        pack(tokens, dtype)


def test_features_beyond_fp16_are_refused_there_alone() -> None:
    tokens = torch.full((1, 1, 1, 4), 1e5)
    with pytest.raises(ValueError, match="not finite in fp16"):
        pack(tokens, "fp16")
    for dtype in ("bf16", "fp32", "int8"):
        torch.testing.assert_close(unpack(pack(tokens, dtype)).float(), tokens, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", FORMATS)
def test_records_are_unpacked_alone_or_in_a_batch(dtype: CacheType) -> None:
    packed = pack(features(3, 2, 5, 8), dtype)
    rows = [{name: part[row] for name, part in packed.items()} for row in range(3)]
    together = {name: torch.stack([row[name] for row in rows]) for name in packed}
    torch.testing.assert_close(torch.stack([unpack(row) for row in rows]), unpack(together), rtol=0, atol=0)


@settings(deadline=None)
@given(
    dtype=st.sampled_from(FORMATS),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    width=st.integers(1, 40),
)
def test_stored_bytes_are_those_of_the_tensors(dtype: CacheType, sides: tuple[int, int, int], width: int) -> None:
    grid = TokenGrid(*sides)
    packed = pack(torch.ones(grid.frames, grid.tokens_per_frame, width), dtype)
    assert stored_bytes(grid, width, dtype) == sum(part.nbytes for part in packed.values())


def test_a_record_takes_little_more_than_its_features() -> None:
    grid = TokenGrid(1, 16, 16)
    needed = stored_bytes(grid, 384, "int8")
    assert needed <= len(save(pack(features(1, 256, 384), "int8"))) <= needed + 200


# Whitening


def correlated(count: int, width: int, seed: int = 0) -> Tensor:
    """Tokens whose channels are mixed, of unequal variance, and far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -1, width)[:, None]
    return torch.randn(count, width, generator=generator) @ mixing + 5 * torch.randn(width, generator=generator)


def test_whitened_tokens_are_uncorrelated_with_variance_one() -> None:
    tokens = correlated(600, 12)
    white = fit_whitening([tokens[:100].view(2, 1, 50, 12), tokens[100:].view(10, 5, 10, 12)], 5)(tokens).double()
    assert white.shape == (600, 5)
    torch.testing.assert_close(white.mean(0), torch.zeros(5).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.T @ white / 600, torch.eye(5).double(), atol=1e-3, rtol=0)


def test_the_directions_of_largest_variance_are_kept() -> None:
    """Against the principal components that NumPy's singular values give in double precision."""
    tokens = correlated(400, 10)
    whitening = fit_whitening([tokens], 3)
    centred = tokens.double() - tokens.double().mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:3].T / (values[:3] / 400**0.5)
    white = whitening(tokens).double()
    signs = (white * expected).sum(0).sign()  # a direction may point either way
    torch.testing.assert_close(white * signs, expected, atol=1e-3, rtol=1e-3)


def test_whitening_works_on_grids_of_any_shape() -> None:
    whitening = fit_whitening([correlated(300, 6)], 4)
    tokens = correlated(24, 6, seed=1)
    torch.testing.assert_close(whitening(tokens.view(2, 3, 4, 6)), whitening(tokens).view(2, 3, 4, 4))
    assert whitening(tokens.half()).dtype == torch.float32


def test_large_means_do_not_swamp_small_variances() -> None:
    tokens = 1000 + features(500, 4, scale=0.01)
    white = fit_whitening(tokens.split(50), 2)(tokens)
    torch.testing.assert_close(white.var(0, unbiased=False), torch.ones(2), atol=0.02, rtol=0)


def test_directions_without_variance_stay_small() -> None:
    """A dead channel is not blown up to noise of variance one."""
    tokens = features(200, 5)
    tokens[:, 3] = 2.0
    white = fit_whitening([tokens], 5)(tokens)
    assert white.isfinite().all()
    assert white.std(0).min() < 1e-2


@pytest.mark.parametrize(
    ("batches", "dim", "words"),
    [
        ([], 2, "2 whitened dimensions can't be fitted to 0 tokens"),
        ([torch.ones(1, 1, 4, 8)], 4, "4 whitened dimensions can't be fitted to 4 tokens of width 8"),
        ([torch.ones(1, 1, 40, 8)], 9, "9 whitened dimensions can't be fitted to 40 tokens of width 8"),
    ],
)
def test_whitenings_that_cannot_be_fitted(batches: list[Tensor], dim: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_whitening(batches, dim)


def test_a_whitening_restored_from_its_tensors_is_the_same() -> None:
    fitted = fit_whitening([correlated(100, 6)], 3)
    tokens = correlated(5, 6, seed=3)
    assert torch.equal(Whitening(fitted.mean.clone(), fitted.matrix.clone())(tokens), fitted(tokens))


# Identity

FACTS = EncoderFacts("vit", "0123456789abcdef", 384, 14, 518, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ASKED: dict[str, Any] = {"name": "dinov2_vits14", "image_size": 224, "cell": 16.0, "dtype": "bf16", "dim": None}
ASKED |= {"normalized": False}


def test_an_identity_survives_json() -> None:
    identity = cache_identity(FACTS, **ASKED)
    assert json.loads(json.dumps(identity)) == identity
    assert identity["width"] == 384 and identity["weights"] == "0123456789abcdef" and identity["size"] == 224


@pytest.mark.parametrize(
    "change",
    [
        {"name": "dinov2_vitb14"},
        {"image_size": 238},
        {"image_size": "auto"},
        {"dtype": "int8"},
        {"dim": 128},
        {"dim": 384},  # as wide as before, but whitened
        {"normalized": True},
        {"weights": "fedcba9876543210"},
        {"patch": 16},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
    ],
    ids=str,
)
def test_an_identity_changes_with_all_that_changes_features(change: dict[str, Any]) -> None:
    asked = ASKED | {name: value for name, value in change.items() if name in ASKED}
    known = {name: value for name, value in change.items() if name not in ASKED}
    facts = EncoderFacts(**(vars(FACTS) | known))
    assert cache_identity(facts, **asked) != cache_identity(FACTS, **ASKED)


def test_the_students_cell_counts_only_where_the_size_follows_it() -> None:
    fixed, auto = ({**ASKED, "image_size": size} for size in (224, "auto"))
    assert cache_identity(FACTS, **fixed) == cache_identity(FACTS, **{**fixed, "cell": 32.0})
    assert cache_identity(FACTS, **auto) != cache_identity(FACTS, **{**auto, "cell": 32.0})
