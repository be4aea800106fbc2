"""How teacher features are kept: number formats, whitening, and what a cache of them depends on.

Pure functions of tensors; the store on disk is `helpers.data`'s, and any other will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from simpletuner.configuration.alignment_shared import CacheType
from simpletuner.configuration.cache_sizes import feature_bytes
from simpletuner.helpers.training.alignment.encoders import EncoderFacts
from simpletuner.helpers.training.alignment.geometry import TokenGrid

TOKENS, SCALE = "tokens", "scale"
FORMATS: dict[CacheType, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
}
_INT8_MOST = 127
_LEAST_VARIANCE = 1e-6  # of the largest: what is below it is noise, which whitening would blow up


def pack(tokens: Tensor, dtype: CacheType, *, normalized: bool = False) -> dict[str, Tensor]:
    """Features `(..., N, D)` as they are stored.

    Args:
        dtype: of the stored numbers; "int8" divides each token by its largest value, kept as `scale` `(..., N, 1)`.
        normalized: stores each token at unit length.

    Raises:
        ValueError: a feature isn't finite, or too large for fp16.
    """
    tokens = F.normalize(tokens.float(), dim=-1) if normalized else tokens.float()
    if dtype == "int8":
        scale = tokens.abs().amax(-1, keepdim=True) / _INT8_MOST
        packed = {TOKENS: (tokens / scale.clamp(min=1e-30)).round().to(torch.int8), SCALE: scale}
    else:
        packed = {TOKENS: tokens.to(FORMATS[dtype])}
    if not all(part.isfinite().all() for part in packed.values()):
        raise ValueError(f"the teacher's features are not finite in {dtype}")
    return packed


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """Features `(..., N, D)` from what `pack` made, batched or not, on their device; not widened without need."""
    return packed[TOKENS] * packed[SCALE] if SCALE in packed else packed[TOKENS]


def stored_bytes(grid: TokenGrid, width: int, dtype: CacheType) -> int:
    """Bytes that a sample's features take."""
    return feature_bytes(grid.tokens, width, dtype)


@dataclass(frozen=True)
class Whitening:
    """A linear map to fewer dimensions that are uncorrelated and have variance 1.

    A 128-dimensional whitened teacher serves as well as the whole one (RARE).

    Attributes:
        mean `(D,)`, matrix `(D, d)`: fp32.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """`(..., D)` -> `(..., d)`, in fp32."""
        return (tokens.float() - self.mean.to(tokens.device)) @ self.matrix.to(tokens.device)


def fit_whitening(batches: Iterable[Tensor], dim: int) -> Whitening:
    """Fits a whitening to the `dim` directions of largest variance of tokens `(..., D)`.

    Raises:
        ValueError: fewer tokens than dimensions, or `dim` above D.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for tokens in batches:
        rows = tokens.flatten(0, -2).double()
        # Of each batch in double precision: large means would otherwise swamp small variances.
        count, total, products = count + len(rows), total + rows.sum(0).cpu(), products + (rows.T @ rows).cpu()
    if total.ndim == 0 or count <= dim or dim > len(total):
        width = 0 if total.ndim == 0 else len(total)
        raise ValueError(f"{dim} whitened dimensions can't be fitted to {count} tokens of width {width}")
    mean = total / count
    variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    largest = variances[-1]
    kept = variances[-dim:].flip(0).clamp(min=float(largest) * _LEAST_VARIANCE)
    return Whitening(mean.float(), (directions[:, -dim:].flip(1) / kept.sqrt()).float())


def cache_identity(
    facts: EncoderFacts,
    *,
    name: str,
    image_size: int | str,
    cell: float,
    dtype: CacheType,
    dim: int | None,
    normalized: bool,
) -> dict[str, Any]:
    """What a cache of features depends on besides the samples, as JSON has it.

    Args:
        name: the encoder's, as the user gave it; a local one is known by its architecture, wherever it lies.
        image_size, dtype, dim, normalized: the options.
        cell: pixels a side that a teacher's token is to cover where `image_size` is "auto".
    """
    return {
        "encoder": name,
        "weights": facts.weights,
        "size": f"auto, {cell:g} pixels a token" if image_size == "auto" else image_size,
        "patch": facts.patch,
        "width": facts.width if dim is None else dim,
        "whitened": dim is not None,
        "normalised": normalized,
        "dtype": dtype,
        "preprocessing": f"bicubic, antialiased, {_shown(facts.mean)}, {_shown(facts.std)}",
    }


# What a manifest means that was written before it could say so.
UNSTATED: Mapping[str, Any] = {"normalised": False}


def _shown(channels: Iterable[float]) -> str:
    return "/".join(f"{math.floor(value * 1e4 + 0.5) / 1e4:g}" for value in channels)
