"""Maps of tokens in the plane: t-SNE (Journal of Machine Learning Research 9, 2008) and UMAP (arXiv 1802.03426).

They show neighbourhoods, no distances; the same input gives the same map.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F

from simpletuner.evaluation.hidden_states import TeacherTokens
from simpletuner.helpers.training.alignment.geometry import TokenGrid, resample_tokens

FEWEST_POINTS = 10
PRINCIPAL_COMPONENTS = 50  # to which t-SNE's authors reduce first
RANDOM_STATE = 0


def has_umap() -> bool:
    """Whether umap-learn, of the extra `eval`, is installed."""
    return importlib.util.find_spec("umap") is not None


def tsne(points: Tensor) -> np.ndarray:
    """Points `(n, d)` in the plane, `(n, 2)`; rows are compared by direction.

    Raises:
        ValueError: fewer than `FEWEST_POINTS`.
    """
    rows = _rows(points)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=RANDOM_STATE).fit_transform(rows)


def umap(points: Tensor) -> np.ndarray:
    """The same by UMAP.

    Raises:
        ValueError: umap-learn isn't installed, or fewer than `FEWEST_POINTS`.
    """
    if not has_umap():
        raise ValueError("UMAP needs umap-learn, which isn't installed: pip install 'simpletuner-repa[eval]'.")
    from umap import UMAP

    rows = _rows(points)
    mapping = UMAP(n_neighbors=min(15, len(rows) - 1), random_state=RANDOM_STATE, n_jobs=1)
    return np.asarray(mapping.fit_transform(rows))


def _rows(points: Tensor) -> np.ndarray:
    if len(points) < FEWEST_POINTS:
        raise ValueError(f"A map needs at least {FEWEST_POINTS} points, got {len(points)}; take more images.")
    rows = F.normalize(points.detach().cpu().float(), dim=1).numpy()
    return PCA(min(PRINCIPAL_COMPONENTS, *rows.shape), random_state=RANDOM_STATE).fit_transform(rows)


def choose_places(grids: Sequence[TokenGrid], points: int, *, seed: int = 0) -> list[Tensor]:
    """Random tokens of each sample, by their index on its grid, about `points` in all and at least one each."""
    generator = torch.Generator().manual_seed(seed)
    each = max(1, points // len(grids))
    return [torch.randperm(grid.tokens, generator=generator)[:each] for grid in grids]


def tokens_at(tokens: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """The tokens `(T, N, D)` of every sample at its places, `(points, D)`."""
    return torch.cat([one.flatten(0, 1)[chosen] for one, chosen in zip(tokens, places, strict=True)])


def teacher_tokens_on(teacher: TeacherTokens, grids: Sequence[TokenGrid]) -> list[Tensor]:
    """The teacher's tokens brought onto the students' grids, so that a point is the same place on both sides."""
    return [
        resample_tokens(tokens.float()[None], own, grid)[0]
        for tokens, own, grid in zip(teacher.tokens, teacher.grids, grids, strict=True)
    ]
