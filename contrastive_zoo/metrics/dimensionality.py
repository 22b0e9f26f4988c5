"""Dimensionality of features: the spectrum of their covariance, its rank, and the effective rank."""

import torch
from torch import Tensor

from contrastive_zoo.checks import check_count, check_number
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
    p = _shares(z)
    return float(torch.special.entr(p / p.sum()).sum().exp()) if len(p) else 0.0


def rankme(z: Tensor) -> float:
    """RankMe: exponential of the entropy of the normalised singular values of the features, which needs no labels.

        exp(-sum_k p_k log p_k),        p = s / sum(s) + 1e-7

    `s` are the min(N, D) singular values of `z` itself, not centred. Equals `effective_rank` but for the offset, which here
    makes the `p` sum to slightly more than 1, as in the paper. 0 if all rows are zero.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank",
    ICML 2023, eq. 1. arXiv:2210.02885

    Args:
        z: (N, D) features, N >= 1, not normalised; the paper takes 25,600 rows.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least one row.

    Examples:
        >>> round(rankme(torch.eye(5)), 3)
        5.0
    """
    p = _shares(z)
    return float(torch.special.entr(p).sum().exp()) if len(p) else 0.0


def alpha_req(z: Tensor, first: int = 4, last: int = 100) -> float:
    """alpha-ReQ: how fast the eigenvalues of the covariance of the features fall, as a power of their rank; about 1 is good.

        log l_k ~ c - alpha log k        for k = first, ..., last, least squares with weights 1 / k

    `l` is the spectrum of the covariance. A small alpha means many used dimensions, a large one few. The paper gives no range
    and no weights; those here are of its code. A `last` beyond the number of eigenvalues above 1e-12 of the largest is reduced
    to this number.

    Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum Decay",
    NeurIPS 2022.

    Args:
        z: (N, D) features, N >= 2, not normalised.
        first: Rank of the largest eigenvalue that is fitted, counted from 1.
        last: Rank of the smallest one.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least two rows, or fewer than two eigenvalues are left to fit.

    Examples:
        >>> z = torch.linalg.qr(torch.randn(64, 32) - 0.5).Q  # orthogonal features ...
        >>> z = torch.cat([z, -z]) * torch.arange(1, 33) ** -0.5  # ... whose variances fall as 1 / k
        >>> round(alpha_req(z), 3)
        1.0
    """
    first = check_count("first", first)
    last = check_count("last", last, low=first + 1)
    values = spectrum(z).cpu()
    last = min(last, int((values > 1e-12 * values[0]).sum()))
    if last <= first:
        raise ValueError(
            f"only {last} eigenvalues of the covariance are above 1e-12 of the largest, too few to fit those from "
            f"first = {first} on: give more rows or wider features, or a smaller first."
        )
    ranks = torch.arange(first, last + 1, dtype=torch.float64)
    x, y = ranks.log(), values[first - 1 : last].log()
    weights = (1 / ranks) / (1 / ranks).sum()
    centred = x - (weights * x).sum()
    return -float((weights * centred * y).sum() / (weights * centred.square()).sum())


def _shares(z: Tensor) -> Tensor:
    """Singular values of the features over their sum, plus 1e-7; empty if all rows are zero."""
    rows = check_features(z, "z", min_rows=1)
    values = _singular_values(rows, rows.new_zeros(rows.shape[1]))
    return values[:0] if values[0] == 0 else values / values.sum() + 1e-7


def _singular_values(rows: Tensor, origin: Tensor) -> Tensor:
    """Singular values of `rows - origin`, in float64, from a triangular factor that is updated block by block."""
    triangle = rows[:0].double()
    for piece in blocks(rows, size=4 * rows.shape[1]):
        triangle = torch.linalg.qr(torch.cat([triangle, piece.double() - origin]), mode="r").R
    values: Tensor = torch.linalg.svdvals(triangle)
    return values
