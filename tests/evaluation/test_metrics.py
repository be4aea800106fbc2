"""Metrics against closed forms and direct formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from torch import Tensor

from simpletuner.evaluation.metrics import (
    cca,
    cka,
    cknna,
    frechet_distance,
    gaussian_statistics,
    linear_probe,
    most_components,
    svcca,
    unbiased_hsic,
)


def random_rows(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(random_rows(width, width, seed)).Q


# Gaussian statistics and the Fréchet distance


def test_statistics_equal_numpy() -> None:
    features = random_rows(20, 5, 0)
    mean, covariance = gaussian_statistics(features.float())
    assert mean.dtype == covariance.dtype == torch.float64
    np.testing.assert_allclose(mean, features.numpy().mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(features.numpy(), rowvar=False), atol=1e-6)


def test_distance_of_one_dimensional_gaussians() -> None:
    mean1, mean2, sigma1, sigma2 = 1.0, 4.0, 2.0, 0.5
    found = frechet_distance(
        torch.tensor([mean1]), torch.tensor([[sigma1**2]]), torch.tensor([mean2]), torch.tensor([[sigma2**2]])
    )
    assert found == pytest.approx((mean1 - mean2) ** 2 + (sigma1 - sigma2) ** 2)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 8))
def test_distance_of_commuting_covariances(seed: int, width: int) -> None:
    """Covariances with the same eigenvectors: the distance is |m1 - m2|² + Σ(sqrt(a) - sqrt(b))²."""
    axes = random_rotation(width, seed)
    spread1, spread2 = random_rows(width, 1, seed + 1).abs().flatten(), random_rows(width, 1, seed + 2).abs().flatten()
    mean1, mean2 = random_rows(2, width, seed + 3)
    found = frechet_distance(mean1, (axes * spread1) @ axes.T, mean2, (axes * spread2) @ axes.T)
    expected = (mean1 - mean2).square().sum() + (spread1.sqrt() - spread2.sqrt()).square().sum()
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_distance_equals_the_general_matrix_root() -> None:
    """tr (C1 C2)^½ from the eigenvalues of the product, which is not symmetric."""
    mean1, cov1 = gaussian_statistics(random_rows(50, 6, 0) @ random_rows(6, 6, 1))
    mean2, cov2 = gaussian_statistics(random_rows(50, 6, 2) @ random_rows(6, 6, 3))
    overlap = torch.linalg.eigvals(cov1 @ cov2).sqrt().sum().real
    expected = (mean1 - mean2).square().sum() + (cov1 + cov2).trace() - 2 * overlap
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(float(expected), rel=1e-9)


def test_distance_is_symmetric_and_zero_to_itself_with_singular_covariances() -> None:
    """Fewer images than features: the covariances have rank 4 of 16, which a general matrix root breaks on."""
    one, two = gaussian_statistics(random_rows(5, 16, 0)), gaussian_statistics(random_rows(5, 16, 1))
    assert frechet_distance(*one, *one) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(*one, *two) == pytest.approx(frechet_distance(*two, *one), rel=1e-6)
    assert math.isfinite(frechet_distance(*one, *two))


def test_statistics_and_distance_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        gaussian_statistics(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        gaussian_statistics(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        gaussian_statistics(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"\(d, d\)"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


# CKNNA and CKA


def reference_hsic(kernel1: list[list[float]], kernel2: list[list[float]]) -> float:
    """The unbiased estimator as an average over distinct indices: E[KᵢⱼLᵢⱼ] + E[KᵢⱼLₖₗ] - 2 E[KᵢⱼLⱼₖ], by loops.

    The order of the indices matters because masked kernels are not symmetric: Song et al.'s sums are
    tr(KL), 1ᵀK1 · 1ᵀL1 and 1ᵀKL1 with zero diagonals.
    """
    rows = len(kernel1)
    trace = sum(kernel1[i][j] * kernel2[j][i] for i in range(rows) for j in range(rows) if i != j)
    total1 = sum(kernel1[i][j] for i in range(rows) for j in range(rows) if i != j)
    total2 = sum(kernel2[i][j] for i in range(rows) for j in range(rows) if i != j)
    chain = sum(
        kernel1[i][j] * kernel2[j][m]
        for i in range(rows)
        for j in range(rows)
        for m in range(rows)
        if i != j and j != m
    )
    return (trace + total1 * total2 / ((rows - 1) * (rows - 2)) - 2 * chain / (rows - 2)) / (rows * (rows - 3))


def reference_cknna(student: Tensor, teacher: Tensor, k: int) -> float:
    """CKNNA by loops over images and neighbours."""

    def kernel(features: Tensor) -> list[list[float]]:
        unit = [row / row.norm() for row in features]
        return [[float(a @ b) for b in unit] for a in unit]

    def neighbours(values: list[list[float]]) -> list[set[int]]:
        rows = len(values)
        return [set(sorted((j for j in range(rows) if j != i), key=lambda j: -values[i][j])[:k]) for i in range(rows)]

    def masked(values: list[list[float]], allowed: list[set[int]]) -> list[list[float]]:
        return [[value if j in allowed[i] else 0.0 for j, value in enumerate(row)] for i, row in enumerate(values)]

    one, two = kernel(student), kernel(teacher)
    near1, near2 = neighbours(one), neighbours(two)
    both = [a & b for a, b in zip(near1, near2, strict=True)]
    shared = reference_hsic(masked(one, both), masked(two, both))
    own1 = reference_hsic(masked(one, near1), masked(one, near1))
    own2 = reference_hsic(masked(two, near2), masked(two, near2))
    return shared / math.sqrt(own1 * own2)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_cknna_equals_loops(k: int) -> None:
    student = random_rows(24, 6, 0)
    teacher = student @ random_rows(6, 9, 1) + 0.5 * random_rows(24, 9, 2)
    assert cknna(student, teacher, k=k) == pytest.approx(reference_cknna(student, teacher, k), abs=1e-10)


def test_unbiased_hsic_is_zero_on_average_for_independent_features() -> None:
    """The biased estimator of the same sets averages well above 0."""
    estimates = []
    for seed in range(200):
        one, two = random_rows(8, 3, 2 * seed), random_rows(8, 3, 2 * seed + 1)
        estimates.append(float(unbiased_hsic(one @ one.T, two @ two.T)))
    mean, error = np.mean(estimates), np.std(estimates) / math.sqrt(len(estimates))
    assert abs(mean) < 4 * error


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0))
def test_similarities_ignore_rotation_and_scale(seed: int, scale: float) -> None:
    features = random_rows(40, 5, seed)
    turned = scale * features @ random_rotation(5, seed + 1)
    assert cknna(features, turned) == pytest.approx(1.0, abs=1e-8)
    assert cka(features, turned) == pytest.approx(1.0, abs=1e-8)
    assert cka(features, turned, unbiased=True) == pytest.approx(1.0, abs=1e-8)


def test_cknna_tells_the_same_images_from_shuffled_ones() -> None:
    student = random_rows(200, 8, 0)
    teacher = student @ random_rows(8, 16, 1)
    shuffled = teacher[torch.randperm(200, generator=torch.Generator().manual_seed(2))]
    assert cknna(student, teacher) > 0.3
    assert abs(cknna(student, shuffled)) < 0.1


def test_cknna_with_all_neighbours_is_unbiased_cka_of_unit_rows() -> None:
    student, teacher = random_rows(20, 4, 0), random_rows(20, 7, 1)
    unit = [torch.nn.functional.normalize(rows, dim=1) for rows in (student, teacher)]
    assert cknna(student, teacher, k=19) == pytest.approx(cka(*unit, unbiased=True), abs=1e-10)


def test_cka_equals_the_kernel_formula() -> None:
    student, teacher = random_rows(15, 4, 0), random_rows(15, 6, 1)
    centre = torch.eye(15, dtype=torch.float64) - 1 / 15
    kernel1, kernel2 = (centre @ rows @ rows.T @ centre for rows in (student, teacher))
    expected = (kernel1 * kernel2).sum() / (kernel1.norm() * kernel2.norm())
    assert cka(student, teacher) == pytest.approx(float(expected), abs=1e-10)


def test_features_without_geometry_align_with_nothing() -> None:
    constant = torch.ones(12, 3)
    assert cka(constant, random_rows(12, 3, 0)) == 0.0


def test_similarities_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="k: 10 neighbours"):
        cknna(random_rows(8, 2, 0), random_rows(8, 2, 1))
    with pytest.raises(ValueError, match="same images"):
        cknna(random_rows(12, 2, 0), random_rows(13, 2, 1))
    with pytest.raises(ValueError, match="at least 4 images"):
        cka(random_rows(3, 2, 0), random_rows(3, 2, 1))


# CCA and SVCCA


def reference_cca(student: Tensor, teacher: Tensor) -> float:
    """Mean canonical correlation from covariances: the singular values of C11^-½ C12 C22^-½ (numpy, n > d)."""
    one, two = student.numpy(), teacher.numpy()
    one, two = one - one.mean(0), two - two.mean(0)

    def inverse_root(covariance: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(covariance)
        return vectors / np.sqrt(values) @ vectors.T

    whitened = inverse_root(one.T @ one) @ (one.T @ two) @ inverse_root(two.T @ two)
    return float(np.linalg.svd(whitened, compute_uv=False)[: min(one.shape[1], two.shape[1])].mean())


def test_cca_equals_the_formula_of_covariances() -> None:
    student = random_rows(300, 5, 0)
    teacher = student @ random_rows(5, 8, 1) + 2 * random_rows(300, 8, 2)
    assert cca(student, teacher) == pytest.approx(reference_cca(student, teacher), abs=1e-10)
    assert svcca(student, teacher, variance=1.0) == pytest.approx(reference_cca(student, teacher), abs=1e-10)


def test_cca_equals_scikit_learn() -> None:
    """Its canonical variates of one direction at a time correlate as ours do."""
    student = random_rows(300, 3, 0)
    teacher = student @ random_rows(3, 4, 1) + random_rows(300, 4, 2)
    variates = CCA(3, scale=False, tol=1e-12, max_iter=10_000).fit_transform(student.numpy(), teacher.numpy())
    correlations = [np.corrcoef(one, two)[0, 1] for one, two in zip(*(part.T for part in variates), strict=True)]
    assert cca(student, teacher) == pytest.approx(np.mean(correlations), abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0))
def test_canonical_correlations_ignore_rotation_scale_and_shift(seed: int, scale: float) -> None:
    features = random_rows(100, 5, seed)
    turned = scale * features @ random_rotation(5, seed + 1) + 3
    assert cca(features, turned) == pytest.approx(1.0, abs=1e-8)
    assert svcca(features, turned) == pytest.approx(1.0, abs=1e-8)


def test_cca_of_independent_features_is_small_and_of_few_images_is_not() -> None:
    student, teacher = random_rows(4000, 4, 0), random_rows(4000, 4, 1)
    assert cca(student, teacher) < 0.05
    assert cca(student[:20], teacher[:20], components=4) > 0.3


def test_svcca_leaves_out_what_has_little_variance() -> None:
    """Two shared directions, and three that are tiny and tell nothing: CCA counts these as much as those."""
    shared = random_rows(400, 2, 0)
    student, teacher = (torch.cat([shared, 1e-3 * random_rows(400, 3, seed)], dim=1) for seed in (1, 2))
    assert svcca(student, teacher) == pytest.approx(1.0, abs=1e-4)
    assert cca(student, teacher) < 0.55


def test_more_features_than_images_are_reduced_first() -> None:
    """With as many directions as images any two sets correlate perfectly; a tenth of them are kept."""
    student, teacher = random_rows(200, 500, 0), random_rows(200, 300, 1)
    assert most_components(200) == 20 and most_components(9) == 1
    assert cca(student, teacher) == cca(student, teacher, components=20) < 0.5
    assert cca(student, teacher, components=198) > 0.95


def test_directions_of_no_variance_count_for_nothing() -> None:
    features = random_rows(100, 3, 0)
    doubled = torch.cat([features, features[:, :1]], dim=1)
    assert cca(doubled, features) == pytest.approx(1.0, abs=1e-8)
    assert cca(torch.ones(50, 3), random_rows(50, 3, 0)) == 0.0


def test_canonical_correlations_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="components: 19 directions asked for of 20 images; choose 1 to 18"):
        cca(random_rows(20, 3, 0), random_rows(20, 3, 1), components=19)
    with pytest.raises(ValueError, match="variance: 0 is no share"):
        svcca(random_rows(20, 3, 0), random_rows(20, 3, 1), variance=0)
    with pytest.raises(ValueError, match="same images"):
        cca(random_rows(20, 3, 0), random_rows(21, 3, 1))


# Linear probe


def test_linear_probe_separates_what_is_linear_and_guesses_noise() -> None:
    features, labels = random_rows(400, 5, 0), torch.arange(400) % 2
    separable = features.clone()
    separable[:, 2] += 6.0 * labels
    assert linear_probe(separable[:300], labels[:300], separable[300:], labels[300:]) > 0.97
    assert 0.3 < linear_probe(features[:300], labels[:300], features[300:], labels[300:]) < 0.7


def test_linear_probe_refuses_bad_labels() -> None:
    features = random_rows(10, 3, 0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        linear_probe(features, torch.zeros(10), features, torch.zeros(10))
    with pytest.raises(ValueError, match="train_labels: shape"):
        linear_probe(features, torch.zeros(9), features, torch.zeros(10))
