"""What the formats of cached features cost on disk, and what they do to tokens and losses.

    python benchmarks/feature_formats.py

The tokens are drawn, not encoded: correlated channels whose variances fall by a power law, and, as in DINOv2, a mean
and a few channels that are far larger than the others. The student is the teacher plus noise, at a cosine near 0.6.
Whitened tokens are mapped back before they are compared: the error is what was in the directions left out, of which
drawn tokens have far more than an encoder's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from figures import Figure, Layout, layout_in_rows, run_alone, shown
from torch import Tensor

from simpletuner.configuration.alignment_shared import CacheType
from simpletuner.helpers.training.alignment.feature_cache import FORMATS as DTYPES
from simpletuner.helpers.training.alignment.feature_cache import SCALE, fit_whitening, pack, stored_bytes, unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.alignment.losses import manifold_loss, token_cosine

WIDTHS = {"ViT-S": 384, "ViT-B": 768, "ViT-L": 1024, "ViT-g": 1536}
SIDES = {256: 16, 1369: 37}
FORMATS: tuple[CacheType, ...] = ("bf16", "fp16", "int8")
WHITENED = 128
FITTED_IMAGES = 8
SIZE, ERROR, COSINE, MANIFOLD = "an image", "cosine error", "cosine loss changes by", "manifold loss changes by"


def measure(device: torch.device) -> list[Figure]:
    return [*_formats(), *_whitened_probe()]


def layout(figures: list[Figure]) -> Layout:
    """A row a shape and format, a column a measure; and the rest in rows of their own."""
    columns = [SIZE, ERROR, "predicted", COSINE, MANIFOLD]
    rows: dict[str, dict[str, str]] = {}
    rest = []
    for figure in figures:
        row, _, column = figure.name.partition(": ")
        if not column:
            rest.append(figure)
            continue
        rows.setdefault(row, {})[column] = shown(figure.value, figure.unit)
        if column == ERROR and figure.floor is not None:
            rows[row]["predicted"] = shown(figure.floor, figure.unit)
    table = [[row, *(cells.get(column, "") for column in columns)] for row, cells in rows.items()]
    return [(["tokens and format", *columns], table), *layout_in_rows(rest)]


def _formats() -> Iterator[Figure]:
    """Four figures a shape and format: size, the tokens' cosine error, and how the losses change."""
    for name, width in WIDTHS.items():
        for count, side in SIDES.items():
            drawn = _tokens(count, width)
            tokens, grid = drawn[0], TokenGrid(1, side, side)
            for dtype in FORMATS:
                packed = pack(tokens, dtype)
                row, size = f"{name}, {count} tokens, {dtype}", stored_bytes(grid, width, dtype)
                predicted = _rounding_error(tokens, dtype, packed.get(SCALE))
                yield from _compared(row, size, tokens, unpack(packed).float(), predicted)
            whitening = fit_whitening(drawn[1:], WHITENED)
            kept = unpack(pack(whitening(tokens), "bf16")).float()
            restored = kept @ torch.linalg.pinv(whitening.matrix) + whitening.mean
            row = f"{name}, {count} tokens, whitened to {WHITENED}, bf16"
            yield from _compared(row, stored_bytes(grid, WHITENED, "bf16"), tokens, restored)


def _compared(
    row: str, size: int, tokens: Tensor, restored: Tensor, predicted: float | None = None
) -> Iterator[Figure]:
    student = tokens + 1.25 * torch.randn(tokens.shape, generator=_generator(1)) * tokens.std()
    error = float(1 - token_cosine(restored.double(), tokens.double()).mean())
    yield Figure(f"{row}: {SIZE}", size / 1024, "KiB", floor=size / 1024)
    yield Figure(f"{row}: {ERROR}", error, "", floor=predicted)
    for column, before, after in zip(
        (COSINE, MANIFOLD), _losses(student, tokens), _losses(student, restored), strict=True
    ):
        yield Figure(f"{row}: {column}", after - before, "")


def _rounding_error(tokens: Tensor, dtype: CacheType, scale: Tensor | None) -> float:
    """The cosine error to be expected: half the mean square of the rounding error, relative to the token's length.

    Floating-point numbers are off by up to half a unit in the last place, of a significand that is spread evenly on a
    logarithmic scale; int8 by up to half a step of the token's scale.
    """
    if scale is not None:
        return float((scale.square() / 12 * tokens.shape[-1] / tokens.square().sum(-1, keepdim=True)).mean() / 2)
    half_unit = torch.finfo(DTYPES[dtype]).eps / 2
    return half_unit**2 / 3 * (3 / 8 / math.log(2)) / 2


def _losses(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    return -float(token_cosine(student, teacher).mean()), float(manifold_loss(student, teacher))


def _tokens(count: int, width: int) -> Tensor:
    """`(1 + FITTED_IMAGES, 1, 1, N, D)`: an image, and others like it."""
    generator = _generator(0)
    spectrum = torch.arange(1, width + 1).float() ** -0.5
    mixing, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    tokens = torch.randn(1 + FITTED_IMAGES, 1, 1, count, width, generator=generator) * spectrum @ mixing
    tokens += tokens.std() * 0.5 * torch.randn(width, generator=generator)
    tokens[..., torch.randperm(width, generator=generator)[:4]] *= 10
    return tokens


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _whitened_probe() -> list[Figure]:
    """Real images, real weights: what a linear probe still reads from EfficientNet's tokens after whitening."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from simpletuner.helpers.training.alignment.teachers import make_teacher

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16)[:, None, None].expand(-1, 1, 3, -1, -1)
    teacher = make_teacher("efficientnet_lite0", image_size=64)
    teacher.standardise(images[:256].split(32))
    tokens = torch.cat([teacher.encode(part)[0] for part in images.split(64)])
    whitened = fit_whitening([tokens[:1000]], WHITENED)(tokens)
    train, test = slice(0, 1000), slice(1000, None)
    accuracy = {}
    for name, features in {"whole": tokens, "whitened": whitened}.items():
        pooled = features.mean((1, 2)).numpy()
        probe = LogisticRegression(max_iter=2000).fit(pooled[train], digits.target[train])
        accuracy[name] = float(probe.score(pooled[test], digits.target[test]))
    return [
        Figure(
            f"linear probe on digits after whitening EfficientNet-Lite0 to {WHITENED} of 432 / before",
            accuracy["whitened"] / accuracy["whole"],
            at_least=0.98,
            note=f"accuracy {accuracy['whole']:.1%} before, {accuracy['whitened']:.1%} after",
        )
    ]


if __name__ == "__main__":
    run_alone(measure, __doc__, layout)
