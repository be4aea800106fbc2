"""Maps of tokens: the same for the same input, and true to plain neighbourhoods."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from simpletuner.evaluation.embeddings import choose_places, has_umap, teacher_tokens_on, tokens_at, tsne, umap
from simpletuner.evaluation.hidden_states import TeacherTokens
from simpletuner.helpers.training.alignment.geometry import TokenGrid


def two_groups(count: int = 30) -> Tensor:
    """Points in two directions far apart, one group after the other."""
    centres = torch.zeros(2, 1, 8)
    centres[0, 0, 0] = centres[1, 0, 1] = 20
    return (centres + torch.randn(2, count, 8, generator=torch.Generator().manual_seed(0))).flatten(0, 1)


@pytest.mark.parametrize("embed", [tsne, umap])
def test_groups_stay_apart_and_maps_repeat(embed: Callable[[Tensor], np.ndarray]) -> None:
    points = two_groups()
    places = embed(points)
    assert places.shape == (60, 2)
    groups = places.reshape(2, 30, 2)
    centres = groups.mean(1)
    own = np.linalg.norm(groups - centres[:, None], axis=-1)
    other = np.linalg.norm(groups - centres[::-1, None], axis=-1)
    assert (own < other).all()
    np.testing.assert_array_equal(embed(points), places)


@pytest.mark.parametrize("embed", [tsne, umap])
def test_too_few_points(embed: Callable[[Tensor], np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least 10 points, got 9"):
        embed(torch.randn(9, 4))
    assert embed(torch.randn(10, 4)).shape == (10, 2)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)  # as Python has what can't be imported
    assert not has_umap()
    with pytest.raises(ValueError, match=r"pip install 'simpletuner-repa\[eval\]'"):
        umap(two_groups())


def test_points_are_the_same_places_on_both_sides() -> None:
    """Tokens that hold their own row and column: the teacher's, on a grid twice as fine, mean the same places."""

    def coordinates(grid: TokenGrid) -> Tensor:
        rows = (torch.arange(grid.height) + 0.5) / grid.height
        columns = (torch.arange(grid.width) + 0.5) / grid.width
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)[None]

    grids = [TokenGrid(1, 8, 8), TokenGrid(1, 4, 16)]
    fine = [grid.scaled(2) for grid in grids]
    teacher = TeacherTokens("any", [coordinates(grid) for grid in fine], fine)
    places = choose_places(grids, 20)
    assert [len(chosen) for chosen in places] == [10, 10]
    student_points = tokens_at([coordinates(grid) for grid in grids], places)
    torch.testing.assert_close(tokens_at(teacher_tokens_on(teacher, grids), places), student_points, atol=0.05, rtol=0)


def test_places_are_few_where_grids_are_small() -> None:
    places = choose_places([TokenGrid(1, 1, 2), TokenGrid(1, 3, 3)], 100)
    assert [len(chosen) for chosen in places] == [2, 9]
    assert [len(chosen) for chosen in choose_places([TokenGrid(1, 3, 3)] * 5, 2)] == [1] * 5
