"""What the formats of cached features cost on disk, and what they do to tokens and losses.

    python benchmarks/feature_formats.py

The tokens are drawn, not encoded: correlated channels whose variances fall by a power law, and, as in DINOv2, a mean
and a few channels that are far larger than the others. The student is the teacher plus noise, at a cosine near 0.6.
"""

from __future__ import annotations

import torch
from figures import Figure, run_alone
from torch import Tensor

from simpletuner.configuration.alignment_shared import CacheType
from simpletuner.helpers.training.alignment.feature_cache import fit_whitening, pack, stored_bytes, unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.alignment.losses import manifold_loss, token_cosine

WIDTHS = {"ViT-S": 384, "ViT-B": 768, "ViT-L": 1024, "ViT-g": 1536}
SIDES = {256: 16, 1369: 37}
FORMATS: tuple[CacheType, ...] = ("bf16", "fp16", "int8")
WHITENED = 128


def measure(device: torch.device) -> list[Figure]:
    return [*_table(), *_whitened_probe()]


def _table() -> list[Figure]:
    """A figure a shape and format: the tokens' cosine error, with sizes and losses in the note."""
    figures = []
    for name, width in WIDTHS.items():
        for count, side in SIDES.items():
            tokens = _tokens(count, width)
            student = tokens + 1.25 * torch.randn(tokens.shape, generator=_generator(1)) * tokens.std()
            grid = TokenGrid(1, side, side)
            exact = _losses(student, tokens)
            for dtype in FORMATS:
                stored = unpack(pack(tokens, dtype)).float()
                error = float(1 - token_cosine(stored.double(), tokens.double()).mean())
                changes = (f"{abs(a - b):.1e}" for a, b in zip(_losses(student, stored), exact, strict=True))
                note = f"{stored_bytes(grid, width, dtype) / 1024:,.0f} KiB an image; "
                note += "cosine loss ±{}, manifold loss ±{}".format(*changes)
                figures.append(Figure(f"{name}, {count} tokens, {dtype}: cosine error", error, "", note=note))
            size = stored_bytes(grid, WHITENED, "bf16") / 1024
            figures.append(Figure(f"{name}, {count} tokens, whitened to {WHITENED}, bf16: an image", size, "KiB"))
    return figures


def _losses(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    return -float(token_cosine(student, teacher).mean()), float(manifold_loss(student, teacher))


def _tokens(count: int, width: int) -> Tensor:
    """`(1, 1, N, D)`."""
    generator = _generator(0)
    spectrum = torch.arange(1, width + 1).float() ** -0.5
    mixing, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    tokens = torch.randn(count, width, generator=generator) * spectrum @ mixing
    tokens += tokens.std() * 0.5 * torch.randn(width, generator=generator)
    tokens[:, torch.randperm(width, generator=generator)[:4]] *= 10
    return tokens[None, None]


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
    run_alone(measure, __doc__)
