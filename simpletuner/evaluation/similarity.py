"""How alike hidden states and a teacher's features are, by several measures, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from simpletuner.evaluation.metrics import cca, cka, cknna, most_components, svcca

# As figures and tables call them.
MEASURES: Mapping[str, str] = {"cknna": "CKNNA", "cka": "CKA (unbiased)", "cca": "CCA", "svcca": "SVCCA"}
# What runs are judged by: SVCCA keeps as many directions as hold most of the variance, which are other numbers in other
# runs, and the fewer they are the more they correlate.
JUDGED = ("cknna", "cka", "cca")
NEIGHBOURS = 10
GROUPS = 8  # of images, each left out once
SHUFFLES = 20


def similarities(student: Tensor, teacher: Tensor, *, components: int | None = None) -> dict[str, float]:
    """Every measure of features `(n, d1)` and `(n, d2)`, one row an image.

    Args:
        components: of CCA and SVCCA; None takes a tenth of the images. Values with other numbers don't compare.

    Raises:
        ValueError: as of the measures.
    """
    components = most_components(len(student)) if components is None else components
    return {
        "cknna": cknna(student, teacher, k=min(NEIGHBOURS, len(student) - 1)),
        "cka": cka(student, teacher, unbiased=True),
        "cca": cca(student, teacher, components=components),
        "svcca": svcca(student, teacher, components=components),
    }


def chance(student: Tensor, teacher: Tensor, *, seed: int = 0) -> dict[str, float]:
    """What the measures come to where every image is compared with another one's features: their zero."""
    generator = torch.Generator().manual_seed(seed)
    found = [similarities(student, teacher[torch.randperm(len(teacher), generator=generator)]) for _ in range(SHUFFLES)]
    return {name: sum(values[name] for values in found) / len(found) for name in found[0]}


def standard_errors(one: Tensor, other: Tensor, teacher: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Standard error of each measure's difference between two models, over the choice of images.

    A jackknife: the difference is taken again without each of `GROUPS` random groups of images. It says nothing of how
    much trainings with other seeds would differ.

    Args:
        one, other: features `(n, d)` of the same images, in the order of `teacher`.
    """
    components = most_components(len(teacher) - -(-len(teacher) // GROUPS))
    order = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(seed))
    differences: dict[str, list[float]] = {name: [] for name in MEASURES}
    for group in range(GROUPS):
        kept = torch.cat([order[start::GROUPS] for start in range(GROUPS) if start != group]).sort().values
        values = [similarities(side[kept], teacher[kept], components=components) for side in (one, other)]
        for name, found in differences.items():
            found.append(values[1][name] - values[0][name])
    errors = {}
    for name, found in differences.items():
        values_of_groups = torch.tensor(found, dtype=torch.float64)
        spread = (values_of_groups - values_of_groups.mean()).square().sum()
        errors[name] = float((spread * (GROUPS - 1) / GROUPS).sqrt())
    return errors
