"""Similarities of constructed features, and how sure their differences are."""

from __future__ import annotations

import torch
from torch import Tensor

from simpletuner.evaluation.similarity import MEASURES, chance, similarities, standard_errors


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy_copies(noise: float, seed: int, count: int = 120) -> Tensor:
    """Features that tell what `rows(count, 8, 0)` does, and noise."""
    return rows(count, 8, 0) @ rows(8, 12, 1) + noise * rows(count, 12, seed)


def test_less_noise_is_more_similar_by_every_measure_and_surely() -> None:
    teacher, far, near = rows(120, 8, 0), noisy_copies(6.0, 2), noisy_copies(0.3, 3)
    low, high = similarities(far, teacher), similarities(near, teacher)
    errors = standard_errors(far, near, teacher)
    assert list(low) == list(MEASURES) == list(errors)
    assert all(high[name] - low[name] > 2 * errors[name] > 0 for name in MEASURES)


def test_chance_is_what_is_left_without_the_pairing() -> None:
    teacher, near = rows(120, 8, 0), noisy_copies(0.3, 3)
    by_chance, found = chance(near, teacher), similarities(near, teacher)
    assert all(by_chance[name] < found[name] / 2 for name in MEASURES)
    assert abs(by_chance["cka"]) < 0.05 and abs(by_chance["cknna"]) < 0.1
    assert chance(near, teacher) == by_chance


def test_a_difference_of_equals_has_no_error() -> None:
    teacher, near = rows(40, 8, 0), noisy_copies(0.3, 3, count=40)
    assert standard_errors(near, near, teacher) == dict.fromkeys(MEASURES, 0.0)


def test_standard_errors_are_of_the_size_of_the_scatter() -> None:
    """Over draws of other images, the difference scatters about as much as its errors say on average."""
    differences, errors = [], []
    mixing, seeds = rows(8, 12, 1), range(12)
    for seed in seeds:
        teacher = rows(120, 8, 100 + seed)
        far, near = (teacher @ mixing + noise * rows(120, 12, 200 + seed) for noise in (4.0, 1.0))
        differences.append(similarities(near, teacher)["cka"] - similarities(far, teacher)["cka"])
        errors.append(standard_errors(far, near, teacher)["cka"])
    scatter, said = torch.tensor(differences).std(), torch.tensor(errors).mean()
    assert 0.4 < said / scatter < 2.5
