"""Measures of samples against closed forms and direct formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simpletuner.evaluation.distribution import (
    Gaussian,
    Reference,
    compare,
    fit_gaussian,
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
)
from simpletuner.evaluation.metrics import frechet_distance, gaussian_statistics


def random_rows(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_with(mean: Tensor, variances: Tensor, count: int, seed: int) -> Tensor:
    """Rows whose mean is exactly `mean` and whose unbiased covariance is exactly diagonal, `variances`."""
    drawn = random_rows(count, len(mean), seed)
    basis = torch.linalg.qr(drawn - drawn.mean(0)).Q  # orthonormal columns that sum to zero
    return mean + basis * (variances * (count - 1)).sqrt()


# Gaussians


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), width=st.integers(1, 5))
def test_a_gaussian_fitted_in_batches_is_that_of_all_rows(sizes: list[int], width: int) -> None:
    rows = random_rows(sum(sizes), width, sum(sizes)) * 3 + 100
    fitted = fit_gaussian(rows.split(sizes))
    mean, covariance = gaussian_statistics(rows)
    assert fitted.count == sum(sizes)
    torch.testing.assert_close(fitted.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fitted.covariance, covariance, rtol=1e-9, atol=1e-9)


def test_a_gaussian_needs_two_finite_rows() -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        fit_gaussian([torch.zeros(1, 3)])
    with pytest.raises(ValueError, match="not finite"):
        fit_gaussian([torch.tensor([[0.0, math.inf]])])


# Fréchet distance


@pytest.mark.parametrize("count", [400, 6])  # more rows than features, and fewer
def test_the_distance_is_that_of_the_closed_form(count: int) -> None:
    """Diagonal covariances: |m1 - m2|² + Σ(sqrt(a) - sqrt(b))², to 1e-6 relative."""
    used = min(count - 1, 12)
    variances = torch.zeros(12, dtype=torch.float64)
    variances[:used] = random_rows(used, 1, 1).abs().flatten()
    mean, other_mean = random_rows(2, 12, 2)
    other = random_rows(12, 1, 3).abs().flatten()
    rows = mean.expand(count, 12).clone()
    rows[:, :used] = rows_with(mean[:used], variances[:used], count, 4)
    expected = (mean - other_mean).square().sum() + (variances.sqrt() - other.sqrt()).square().sum()
    found = frechet(rows, Gaussian(1000, other_mean, other.diag()))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_few_rows_give_what_the_general_distance_gives() -> None:
    few, many = random_rows(7, 20, 0), random_rows(90, 20, 1) @ random_rows(20, 20, 2)
    reference = Gaussian(90, *gaussian_statistics(many))
    expected = frechet_distance(*gaussian_statistics(few), reference.mean, reference.covariance)
    assert frechet(few, reference) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [5, 100])
def test_a_set_is_at_no_distance_from_itself(count: int) -> None:
    rows = random_rows(count, 16, 0)
    assert frechet(rows, fit_gaussian(rows.split(3))) == pytest.approx(0.0, abs=1e-6)
    assert precision_recall(rows, rows) == (1.0, 1.0)


# KID


def direct_kernel_distance(samples: Tensor, reference: Tensor) -> float:
    """The unbiased estimator of the squared MMD, by loops."""

    def kernel(one: Tensor, other: Tensor) -> float:
        return float((one @ other / len(one) + 1) ** 3)

    def within(rows: Tensor) -> float:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    across = [kernel(one, other) for one in samples for other in reference]
    return within(samples) + within(reference) - 2 * sum(across) / len(across)


def test_kid_equals_a_double_loop() -> None:
    samples, reference = random_rows(9, 4, 0), random_rows(9, 4, 1) + 0.5
    assert kernel_distance(samples, reference) == pytest.approx(direct_kernel_distance(samples, reference), rel=1e-9)


def test_kid_of_unequal_sets_is_a_mean_over_subsets_and_the_same_each_time() -> None:
    samples, reference = random_rows(6, 4, 0), random_rows(40, 4, 1)
    found = kernel_distance(samples, reference)
    assert found == kernel_distance(samples, reference)
    assert found == pytest.approx(direct_kernel_distance(samples, reference), abs=0.2)
    assert kernel_distance(samples + 2, reference) > found


# Inception score


def test_the_score_of_sure_answers_is_the_number_of_classes() -> None:
    logits = torch.eye(5, dtype=torch.float64).repeat(8, 1) * 1000
    assert inception_score(logits) == pytest.approx(5.0)
    assert inception_score(torch.zeros(40, 5)) == pytest.approx(1.0)


def test_the_score_equals_a_direct_formula() -> None:
    logits = random_rows(30, 4, 0)
    p = logits.softmax(1)
    marginal = p.mean(0)
    divergences = [float((row * (row / marginal).log()).sum()) for row in p]
    assert inception_score(logits) == pytest.approx(math.exp(sum(divergences) / 30), rel=1e-9)


# Precision and recall


def test_precision_and_recall_of_a_case_with_a_known_answer() -> None:
    """Of the samples 6 of 8 lie among the reference; of the reference one cluster of two is covered."""
    near = torch.arange(6, dtype=torch.float64)
    samples = torch.cat([near, torch.tensor([1000.0, 2000.0])])[:, None]
    reference = torch.cat([near, near - 5000])[:, None]
    # The reference's balls reach 3 from each point. The far samples' balls have radii of about 1000 and 2000, which
    # reach back to the near cluster but not to the other one.
    assert precision_recall(samples, reference) == (6 / 8, 6 / 12)


def test_precision_and_recall_equal_loops() -> None:
    samples, reference = random_rows(25, 3, 0) + 0.8, random_rows(31, 3, 1)

    def covered(points: Tensor, by: Tensor) -> float:
        inside = 0
        for point in points:
            for centre in by:
                radius = sorted(float((centre - other).norm()) for other in by)[3]
                if float((point - centre).norm()) <= radius:
                    inside += 1
                    break
        return inside / len(points)

    precision, recall = precision_recall(samples, reference)
    assert precision == pytest.approx(covered(samples, reference))
    assert recall == pytest.approx(covered(reference, samples))
    assert 0 < precision < 1


def test_bad_features_are_refused() -> None:
    rows = random_rows(5, 3, 0)
    with pytest.raises(ValueError, match="at least 4 images are needed, got 3"):
        precision_recall(rows[:3], rows)
    with pytest.raises(ValueError, match="3 features and the reference 2"):
        kernel_distance(rows, rows[:, :2])
    with pytest.raises(ValueError, match="3 features and the reference 2"):
        frechet(rows, fit_gaussian([rows[:, :2]]))
    with pytest.raises(ValueError, match="not finite"):
        inception_score(rows * math.nan)
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet(rows[:1], fit_gaussian([rows]))


# All of it


def test_only_inceptions_distance_is_called_fid() -> None:
    pool, spatial, logits = random_rows(20, 6, 0), random_rows(20, 4, 1), random_rows(20, 5, 2)
    gaussians = {"pool": fit_gaussian([pool]), "spatial": fit_gaussian([spatial])}
    measures, note = compare({"pool": pool, "spatial": spatial, "logits": logits}, Reference(gaussians, pool))
    assert list(measures) == ["fid", "sfid", "inception_score", "kid", "precision", "recall"]
    assert [measures["fid"], measures["sfid"]] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert note is not None and note.startswith("fid is biased upward") and "it is of 20." in note
    other, note = compare({"pool": pool}, Reference({"pool": fit_gaussian([pool])}, pool))
    assert list(other) == ["frechet_distance", "kid", "precision", "recall"]
    assert note is not None and note.startswith("frechet_distance is biased")


def test_what_few_images_can_not_give_is_left_out_and_said() -> None:
    pool = random_rows(3, 6, 0)
    measures, note = compare({"pool": pool}, Reference({"pool": fit_gaussian([pool])}, pool))
    assert list(measures) == ["frechet_distance", "kid"]
    assert note is not None and "more than 3 images" in note and "fewer than its 6 features" in note
