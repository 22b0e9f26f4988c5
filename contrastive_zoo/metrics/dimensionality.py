"""Dimensionality of features: the spectrum of their covariance, its rank, and the effective rank."""

import torch
from torch import Tensor

from contrastive_zoo.checks import check_number
from contrastive_zoo.metrics.inputs import check_features
from contrastive_zoo.metrics.tiles import blocks


def spectrum(z: Tensor) -> Tensor:
    """Singular values of the covariance of the features, largest first: (D,) in float64.

        singular values of  sum_i (z_i - mean)(z_i - mean)^T / (N - 1)

    Plotted as `log(s / s[0])`, a sharp fall shows dimensional collapse; values below about 1e-15 of the largest are
    round-off.

    Jing et al., "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", ICLR 2022.
    arXiv:2110.09348

    Args:
        z: (N, D) features, N >= 2, not normalised.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least two rows.

    Examples:
        >>> [round(value, 4) for value in spectrum(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()]
        [2.0, 0.0]
    """
    rows = check_features(z, "z")
    values = _singular_values(rows, rows.mean(dim=0, dtype=torch.float64)).square() / (len(rows) - 1)
    return torch.nn.functional.pad(values, (0, rows.shape[1] - len(values)))


def rank(z: Tensor, tol: float = 1e-5) -> int:
    """Number of singular values of the covariance of the features above `tol`.

        #{k : s_k > tol},        s = spectrum(z)

    Jing et al., "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", ICLR 2022.
    arXiv:2110.09348

    Args:
        z: (N, D) features, N >= 2, not normalised.
        tol: Absolute threshold, positive; the default suits unit rows.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least two rows, or `tol` is not positive.

    Examples:
        >>> rank(torch.eye(3))  # three points span a plane
        2
    """
    tol = check_number("tol", tol, low=0, open_low=True)
    return int((spectrum(z) > tol).sum())


def effective_rank(z: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of the features: a rank without a threshold.

        exp(-sum_k p_k log p_k),        p = s / sum(s) + 1e-7, made to sum to 1

    `s` are the min(N, D) singular values of `z` itself, not centred. 0 if all rows are zero.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007; the small offset as in
    Garrido et al., "RankMe", ICML 2023. arXiv:2210.02885

    Args:
        z: (N, D) features, N >= 1, not normalised.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least one row.

    Examples:
        >>> round(effective_rank(torch.eye(5)), 4)
        5.0
    """
    rows = check_features(z, "z", min_rows=1)
    values = _singular_values(rows, rows.new_zeros(rows.shape[1]))
    if values[0] == 0:
        return 0.0
    p = values / values.sum() + 1e-7
    return float(torch.special.entr(p / p.sum()).sum().exp())


def _singular_values(rows: Tensor, origin: Tensor) -> Tensor:
    """Singular values of `rows - origin`, in float64, from a triangular factor that is updated block by block."""
    triangle = rows[:0].double()
    for piece in blocks(rows, size=4 * rows.shape[1]):
        triangle = torch.linalg.qr(torch.cat([triangle, piece.double() - origin]), mode="r").R
    values: Tensor = torch.linalg.svdvals(triangle)
    return values
