"""Distances between the samples of a model and a reference, as pure functions of features `(n, d)`, one row an image.

Kernel distance, Inception score, precision and recall are torch-fidelity's own functions, from the extra `eval`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from simpletuner.evaluation.metrics import frechet_distance, gaussian_statistics

NEIGHBOURS = 3
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SPLITS, ROWS_A_SPLIT = 10, 100
CHUNK = 2000  # rows whose distances to all others are held at once
SUBSETS_SEED = 2020  # torch-fidelity's own, so that its command gives the same numbers
UNBIASED_FROM = 10_000  # samples below which a Fréchet distance is told to be biased


@dataclass(frozen=True)
class Gaussian:
    """Mean `(d,)` and unbiased covariance `(d, d)` of `count` rows, float64."""

    count: int
    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: Gaussians of all its features by name, and `rows` `(m, d)` of some images.

    The names are `pool` and, of the Inception network, `spatial`.
    """

    gaussians: dict[str, Gaussian]
    rows: Tensor


class GaussianAccumulator:
    """Mean and covariance of rows that come batch by batch, in float64, merged pairwise (Chan et al., 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._scatter = torch.zeros(0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Adds rows `(b, d)`. Raises ValueError for values that are not finite."""
        rows = _finite("features", rows)
        count, mean = len(rows), rows.mean(dim=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if self._count == 0:
            self._count, self._mean, self._scatter = count, mean, scatter
            return
        total, shift = self._count + count, mean - self._mean
        self._scatter += scatter + torch.outer(shift, shift) * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def result(self) -> Gaussian:
        """Raises ValueError where fewer than 2 rows came."""
        if self._count < 2:
            raise ValueError(f"A covariance needs at least 2 images, got {self._count}: give more of them.")
        return Gaussian(self._count, self._mean, self._scatter / (self._count - 1))


def fit_gaussian(batches: Iterable[Tensor]) -> Gaussian:
    """The Gaussian of rows `(b, d)` that come batch by batch. Raises as `GaussianAccumulator`."""
    accumulator = GaussianAccumulator()
    for rows in batches:
        accumulator.add(rows)
    return accumulator.result()


def frechet(samples: Tensor, reference: Gaussian) -> float:
    """Fréchet distance (arXiv 1706.08500) of the Gaussian of `samples` `(n, d)` to the reference's.

    In Inception features it is FID (`pool`) and sFID (`spatial`, arXiv 2103.03841). With n <= d the covariance is
    AᵀA of rank n - 1, and tr (C1 C2)^½ = tr (A C2 Aᵀ)^½ of an (n, n) matrix: the same number for less work.

    Raises:
        ValueError: fewer than two samples, another width, or a value that is not finite.
    """
    samples = _finite("samples", samples)
    count, width = samples.shape
    if reference.mean.shape != (width,):
        raise ValueError(f"samples have {width} features and the reference {len(reference.mean)}: take one encoder")
    if count > width or count < 2:
        return frechet_distance(*gaussian_statistics(samples), reference.mean, reference.covariance)
    mean = samples.mean(dim=0)
    factor = (samples - mean) / math.sqrt(count - 1)
    product = factor @ reference.covariance @ factor.T
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    traces = factor.square().sum() + reference.covariance.trace()
    return max(0.0, float((mean - reference.mean).square().sum() + traces - 2 * overlap))


def kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """KID (arXiv 1801.01401): the squared MMD with the kernel (x·y/d + 1)³, without bias, so it can be below 0.

    The mean over subsets of 1000 rows of each, drawn with a fixed seed; of all rows at once where neither has more.

    Args:
        samples, reference: `(n, d)` and `(m, d)`.

    Raises:
        ValueError: fewer than two rows, another width, or a value that is not finite.
    """
    samples, reference = _pair(samples, reference, 2)
    size = min(KID_SUBSET_SIZE, len(samples), len(reference))
    subsets = 1 if size == len(samples) == len(reference) else KID_SUBSETS
    found = fidelity_module("metric_kid").kid_features_to_metric(
        samples, reference, kid_subsets=subsets, kid_subset_size=size, rng_seed=SUBSETS_SEED, verbose=False
    )
    return found["kernel_inception_distance_mean"]


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) | p(y)) (arXiv 1606.03498), the mean over 10 splits; in one where they had below 100 rows each.

    Args:
        logits: `(n, classes)`, of the Inception network.

    Raises:
        ValueError: fewer than two rows, or a value that is not finite.
    """
    (logits,) = _checked(2, logits=logits)
    splits = SPLITS if len(logits) >= SPLITS * ROWS_A_SPLIT else 1
    return fidelity_module("metric_isc").isc_features_to_metric(logits, splits)["inception_score_mean"]


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991): the share of each set within the other's k-nearest balls.

    Args:
        samples, reference: `(n, d)` and `(m, d)`.
        neighbours: k, whose distance is the radius of a ball; 3 as in the paper.

    Raises:
        ValueError: k or fewer rows, another width, or a value that is not finite.
    """
    samples, reference = _pair(samples, reference, neighbours + 1)
    found = fidelity_module("metric_prc").prc_features_to_metric(
        samples, reference, prc_neighborhood=neighbours, prc_batch_size=CHUNK, save_cpu_ram=True, verbose=False
    )
    return found["precision"], found["recall"]


def compare(samples: Mapping[str, Tensor], reference: Reference) -> tuple[dict[str, float], str | None]:
    """All measures of samples, and what a reader must know of them.

    Args:
        samples: features by name: `pool` and, of the Inception network alone, `spatial` and `logits`.

    Returns:
        `fid`, `sfid`, `inception_score`, `kid`, `precision` and `recall`; in the features of another encoder
        `frechet_distance`, `kid`, `precision` and `recall`. Then a note, or None.
    """
    pool, is_inception = samples["pool"], "logits" in samples
    distance = "fid" if is_inception else "frechet_distance"
    measures = {distance: frechet(pool, reference.gaussians["pool"])}
    if is_inception:
        measures["sfid"] = frechet(samples["spatial"], reference.gaussians["spatial"])
        measures["inception_score"] = inception_score(samples["logits"])
    measures["kid"] = kernel_distance(pool, reference.rows)
    notes = []
    if min(len(pool), len(reference.rows)) > NEIGHBOURS:
        measures["precision"], measures["recall"] = precision_recall(pool, reference.rows)
    else:
        notes.append(f"Precision and recall need more than {NEIGHBOURS} images on either side.")
    few = min(len(pool), reference.gaussians["pool"].count)
    if few < UNBIASED_FROM:
        singular = f", fewer than its {pool.shape[1]} features" if few <= pool.shape[1] else ""
        notes.append(
            f"{distance} is biased upward, the more the fewer images: it is of {few}{singular}. Compare it with values "
            "of equally many samples and the same reference only; kid has no such bias."
        )
    return measures, " ".join(notes) or None


def fidelity_module(name: str) -> Any:
    """A module of torch-fidelity, which has no type hints. Raises ValueError where it isn't installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it uses what torch deprecates
            return import_module(f"torch_fidelity.{name}")
    except ImportError as error:
        raise ValueError(
            f"The evaluation needs torch-fidelity ({error}): pip install 'simpletuner-repa[eval]'."
        ) from error


def _finite(name: str, rows: Tensor) -> Tensor:
    """Rows `(n, d)` on the CPU in float64, checked."""
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected (n, d), one row an image, got shape {tuple(rows.shape)}")
    rows = rows.detach().cpu().double()
    if not torch.isfinite(rows).all():
        raise ValueError(f"{name}: holds values that are not finite; look at the images and the encoder's weights")
    return rows


def _checked(least: int, **features: Tensor) -> list[Tensor]:
    checked = [_finite(name, rows) for name, rows in features.items()]
    for name, rows in zip(features, checked, strict=True):
        if len(rows) < least:
            raise ValueError(f"{name}: at least {least} images are needed, got {len(rows)}; raise num_eval_images")
    return checked


def _pair(samples: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    samples, reference = _checked(least, samples=samples, reference=reference)
    if samples.shape[1] != reference.shape[1]:
        widths = f"{samples.shape[1]} features and the reference {reference.shape[1]}"
        raise ValueError(f"samples have {widths}: take one encoder")
    return samples, reference
