"""Distances and similarities between sets of features, as pure functions in float64.

Every function takes features `(n, d)`, one row an image. Pool patch tokens to one row an image first.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F


def gaussian_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(d,)` and unbiased covariance `(d, d)` of features `(n, d)`, in float64.

    Raises:
        ValueError: fewer than two rows, another rank, or a value that is not finite.
    """
    features = _rows("features", features)
    if len(features) < 2:
        raise ValueError(f"features: a covariance needs at least 2 rows, got {len(features)}; pass more images")
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Fréchet distance of two Gaussians (arXiv 1706.08500): |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    tr (C1 C2)^½ equals tr (C1^½ C2 C1^½)^½, where every matrix is symmetric and positive semidefinite: eigenvalues
    stay real and singular covariances (fewer images than features) need no epsilon on the diagonal.
    The unit is the features' unit squared.

    Args:
        mean1, mean2: `(d,)`.
        cov1, cov2: `(d, d)`, symmetric positive semidefinite.

    Raises:
        ValueError: the shapes do not agree.
    """
    mean1, cov1, mean2, cov2 = (tensor.detach().cpu().double() for tensor in (mean1, cov1, mean2, cov2))
    width = mean1.shape[0]
    if mean2.shape != (width,) or cov1.shape != (width, width) or cov2.shape != (width, width):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (mean1, cov1, mean2, cov2))
        raise ValueError(f"means must be (d,) and covariances (d, d) with one d, got {shapes}")
    root = _symmetric_root(cov1)
    product = root @ cov2 @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * overlap
    return max(0.0, float(distance))


def cknna(student: Tensor, teacher: Tensor, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment (arXiv 2405.07987): CKA over pairs that are neighbours in both spaces.

    Rows are L2-normalised and compared by inner product. A pair (i, j) counts where j is among the k nearest
    neighbours of i in the student *and* in the teacher. The result is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with
    the unbiased estimator, each kernel masked to the pairs that count. 1 for equal geometry, about 0 for none;
    k = n - 1 gives the unbiased CKA. Memory grows with n².

    Args:
        student: `(n, d1)`, mean-pooled over patches.
        teacher: `(n, d2)`, the same images in the same order.
        k: number of neighbours, 1 .. n - 1.

    Raises:
        ValueError: different numbers of rows, n < 4, or k out of range.
    """
    student, teacher = _paired_rows(student, teacher)
    rows = len(student)
    if not 1 <= k <= rows - 1:
        raise ValueError(f"k: {k} neighbours asked for among {rows} images; choose 1 to {rows - 1}")
    kernels = [features @ features.T for features in (F.normalize(student, dim=1), F.normalize(teacher, dim=1))]
    near_student, near_teacher = (_neighbour_mask(kernel, k) for kernel in kernels)
    kernel_s, kernel_t = kernels
    both = near_student * near_teacher
    shared = unbiased_hsic(both * kernel_s, both * kernel_t)
    own_s = unbiased_hsic(near_student * kernel_s, near_student * kernel_s)
    own_t = unbiased_hsic(near_teacher * kernel_t, near_teacher * kernel_t)
    return _ratio(shared, own_s, own_t)


def cka(student: Tensor, teacher: Tensor, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment (arXiv 1905.00414) of features `(n, d1)` and `(n, d2)`.

    1 for features that are equal up to rotation and scale. The classic estimator lies in [0, 1] and drifts toward 1
    when n is not much larger than d1 and d2; the unbiased one does not.

    Raises:
        ValueError: different numbers of rows, or n < 4.
    """
    student, teacher = _paired_rows(student, teacher)
    if unbiased:
        kernel_s, kernel_t = student @ student.T, teacher @ teacher.T
        own = [unbiased_hsic(kernel, kernel) for kernel in (kernel_s, kernel_t)]
        return _ratio(unbiased_hsic(kernel_s, kernel_t), *own)
    student, teacher = student - student.mean(dim=0), teacher - teacher.mean(dim=0)
    # |SᵀT|² / (|SᵀS| |TᵀT|): the d×d products are the same numbers as the n×n kernels and smaller.
    shared = (student.T @ teacher).square().sum()
    return _ratio(shared, (student.T @ student).square().sum(), (teacher.T @ teacher).square().sum())


def most_components(rows: int) -> int:
    """Directions a side that canonical correlations of so many images are taken over: a tenth of them, at least 1.

    The more directions, the better even independent features can be fitted to each other.
    """
    return max(1, rows // 10)


def cca(student: Tensor, teacher: Tensor, *, components: int | None = None) -> float:
    """Mean canonical correlation of features `(n, d1)` and `(n, d2)`, in [0, 1].

    1 where one side is a linear map of the other. Each side is first reduced to its leading principal directions, for
    with as many directions as images any two sets of features correlate perfectly; directions of no variance are left
    out, and nothing else is regularised. The mean is over the smaller side's directions.

    Args:
        components: directions kept of each side, at most; None takes `most_components` of n. Values with other
            numbers of directions or images don't compare.

    Raises:
        ValueError: different numbers of rows, n < 4, or `components` not from 1 to n - 2.
    """
    return svcca(student, teacher, variance=1.0, components=components)


def svcca(student: Tensor, teacher: Tensor, *, variance: float = 0.99, components: int | None = None) -> float:
    """Singular vector CCA (arXiv 1706.05806): `cca` of the directions that hold a share `variance` of the variance.

    Raises:
        ValueError: as of `cca`, or `variance` not in (0, 1].
    """
    student, teacher = _paired_rows(student, teacher)
    rows = len(student)
    components = most_components(rows) if components is None else components
    if not 1 <= components <= rows - 2:
        raise ValueError(f"components: {components} directions asked for of {rows} images; choose 1 to {rows - 2}")
    if not 0 < variance <= 1:
        raise ValueError(f"variance: {variance} is no share of the variance; choose more than 0 and at most 1")
    bases = [_principal_directions(features, variance, components) for features in (student, teacher)]
    fewest = min(basis.shape[1] for basis in bases)
    if fewest == 0:
        return 0.0
    return float(torch.linalg.svdvals(bases[0].T @ bases[1])[:fewest].clamp_max(1).mean())


def unbiased_hsic(kernel1: Tensor, kernel2: Tensor) -> Tensor:
    """Unbiased Hilbert-Schmidt independence criterion of two `(n, n)` kernels, n >= 4 (Song et al., JMLR 2012).

    The kernels need not be symmetric; their diagonals are ignored.
    """
    rows = kernel1.shape[0]
    one = kernel1 - torch.diag(kernel1.diagonal())
    two = kernel2 - torch.diag(kernel2.diagonal())
    trace = (one * two.T).sum()
    means = one.sum() * two.sum() / ((rows - 1) * (rows - 2))
    cross = one.sum(dim=0) @ two.sum(dim=1) * 2 / (rows - 2)
    return (trace + means - cross) / (rows * (rows - 3))


def linear_probe(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Accuracy in [0, 1] of a logistic regression on frozen features `(n, d)` (standardised by the training rows).

    Args:
        train_features, test_features: `(n, d)`.
        train_labels, test_labels: `(n,)`, integers.

    Raises:
        ValueError: rows and labels differ in number, or the training labels hold one class only.
    """
    train_features, test_features = _rows("train_features", train_features), _rows("test_features", test_features)
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if labels.shape != (len(features),):
            raise ValueError(f"{name}_labels: shape {tuple(labels.shape)} for {len(features)} rows of features")
    if len(train_labels.unique()) < 2:
        raise ValueError("train_labels: a probe needs at least 2 classes")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
    probe.fit(train_features.numpy(), train_labels.cpu().numpy())
    return float(probe.score(test_features.numpy(), test_labels.cpu().numpy()))


def _rows(name: str, features: Tensor) -> Tensor:
    """Features `(n, d)` on the CPU in float64, checked."""
    if features.ndim != 2:
        raise ValueError(f"{name}: expected (n, d), one row an image, got shape {tuple(features.shape)}")
    features = features.detach().cpu().double()
    if not torch.isfinite(features).all():
        raise ValueError(f"{name}: holds values that are not finite")
    return features


def _paired_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = _rows("student", student), _rows("teacher", teacher)
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} rows and teacher {len(teacher)}: they must be the same images")
    if len(student) < 4:
        raise ValueError(f"at least 4 images are needed, got {len(student)}")
    return student, teacher


def _neighbour_mask(kernel: Tensor, k: int) -> Tensor:
    """1 where column j is among the k most similar to row i, itself excluded; `(n, n)`, not symmetric."""
    others = kernel.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(kernel).scatter_(1, others.topk(k, dim=1).indices, 1.0)


def _principal_directions(features: Tensor, variance: float, components: int) -> Tensor:
    """Orthonormal columns `(n, k)`: the images' coordinates along the leading principal directions, whitened."""
    left, values, _ = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    if float(values[0]) <= 1e-12 * float(features.abs().max()) * len(features):
        return left[:, :0]  # no spread but rounding
    shares = values.square().cumsum(0) / values.square().sum()
    # The first direction with which the share is reached is kept; rounding may leave the last share just below 1.
    wanted = int((shares < variance - 1e-12).sum()) + 1
    rank = int((values > values[0] * 1e-10).sum())
    return left[:, : min(wanted, rank, components)]


def _ratio(shared: Tensor, own1: Tensor, own2: Tensor) -> float:
    # Unbiased estimates of features without any spread are 0 or just below: no geometry, so no alignment.
    if own1 <= 0 or own2 <= 0:
        return 0.0
    return float(shared / (own1 * own2).sqrt())


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
