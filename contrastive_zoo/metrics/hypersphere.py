"""Distribution of features on the unit sphere: alignment, uniformity, and the distance to uniformity."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_count, check_number
from contrastive_zoo.metrics.inputs import check_features, check_pair
from contrastive_zoo.metrics.tiles import blocks, inner_products, pair_values, unit_rows
from contrastive_zoo.pairwise import logsumexp

BINS = 2**16


def alignment(z1: Tensor, z2: Tensor, alpha: float = 2) -> float:
    """Mean distance between the two views of a sample, to the power `alpha`; 0 is perfect.

        mean_i |z1_i - z2_i|^alpha

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, section 4.1. arXiv:2005.10242

    Args:
        z1: (N, D) features of one view, not normalised here: pass unit rows for the paper's metric.
        z2: (N, D) features of the other view, in the same order.
        alpha: Power of the distance, positive.

    Raises:
        TypeError: `z1` or `z2` is not a floating-point tensor.
        ValueError: the shapes or devices differ, an entry is not finite, or `alpha` is not positive.

    Examples:
        >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        2.0
    """
    x, y = check_pair(z1, z2)
    alpha = check_number("alpha", alpha, low=0, open_low=True)
    total = x.new_zeros((), dtype=torch.float64)
    for a, b in zip(blocks(x), blocks(y), strict=True):
        total += torch.linalg.vector_norm(a.double() - b.double(), dim=1).pow(alpha).sum()
    return float(total) / len(x)


def uniformity(z: Tensor, t: float = 2) -> float:
    """Log of the mean Gaussian potential over all pairs of rows; lower is more uniform, 0 is total collapse.

        log mean_{i<j} exp(-t |z_i - z_j|^2)

    Computed in float64 and in log space: accurate for features of any scale.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, section 4.1. arXiv:2005.10242

    Args:
        z: (N, D) features, N >= 2, not normalised here: pass unit rows for the paper's metric.
        t: Inverse width of the Gaussian, positive.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least two rows, or `t` is not positive.

    Examples:
        >>> round(uniformity(torch.eye(3)), 4)  # every pair at squared distance 2
        -4.0
    """
    rows = check_features(z, "z")
    t = check_number("t", t, low=0, open_low=True)
    # Distances do not depend on the origin; an origin at the mean minimises cancellation.
    centred = rows.double() - rows.mean(dim=0, dtype=torch.float64)
    return float(_log_potentials(centred, t).logsumexp(0)) - math.log(len(rows) * (len(rows) - 1))


def _log_potentials(rows: Tensor, t: float) -> Tensor:
    """(N,) logarithm of the sum of exp(-t |z_i - z_j|^2) over the other rows."""
    squares = rows.square().sum(dim=1, keepdim=True)
    # -t |z - k|^2 = 2t <(z, 1), (k, -|k|^2 / 2)> - t |z|^2
    anchors, keys = torch.cat([rows, torch.ones_like(squares)], dim=1), torch.cat([rows, -squares / 2], dim=1)
    ids = torch.arange(len(rows), device="cpu")
    return logsumexp(anchors, keys, scale=2 * t, ids=ids, key_ids=ids) - t * squares[:, 0]


def wasserstein_uniformity(z: Tensor) -> float:
    """Wasserstein-1 distance between the distribution of all pairwise cosines and that for uniform points; 0 is uniform.

        integral_{-1}^{1} |F_z(x) - F(x)| dx,        density of F proportional to (1 - x^2)^((D - 3) / 2)

    `F_z` is the distribution function of the cosines of pairs i < j, and `F` the distribution function of the inner product
    of two independent uniform points on the unit sphere in D dimensions, the dimension of the features. Both functions are
    binned, which changes the value by at most the width of a bin, 3.1e-5.

    Koromilas et al., "Bridging Mini-Batch and Asymptotic Analysis in Contrastive Learning: From InfoNCE to Kernel-Based
    Losses", ICML 2024, whose code takes the law of one fixed dimension. arXiv:2405.18045

    Args:
        z: (N, D) features, N >= 2; normalised inside.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least two rows.

    Examples:
        >>> round(wasserstein_uniformity(torch.ones(4, 8)), 4)  # all cosines are 1, their uniform mean is 0
        1.0
    """
    rows = unit_rows(check_features(z, "z"))
    counts = _cosine_counts(rows)
    observed = counts.cumsum(0).double() / counts.sum()
    law = _uniform_cosine_law(rows.shape[1]).to(rows.device)
    return float((observed - law).abs().mean() * 2)


class CosineDensity(NamedTuple):
    """Densities of the cosine of two rows, over equal bins from -1 to 1; each has a mean of 1/2.

    Attributes:
        cosine: (bins,) centres of the bins.
        density: (bins,) density of the cosines of all pairs of rows.
        uniform: (bins,) density for independent uniform points on the unit sphere of the same dimension.
    """

    cosine: Tensor
    density: Tensor
    uniform: Tensor


def cosine_density(z: Tensor, bins: int = 128) -> CosineDensity:
    """Histogram of the cosines of all pairs of rows, beside the law of uniform points, which `wasserstein_uniformity` compares.

    Args:
        z: (N, D) features, N >= 2; normalised inside.
        bins: Number of bins, a power of two up to 65,536.

    Raises:
        TypeError: `z` is not a floating-point tensor.
        ValueError: `z` is not a finite matrix of at least two rows, or `bins` is no such number.

    Examples:
        >>> density = cosine_density(torch.eye(4), bins=4)  # all cosines are 0, at the left edge of the third bin
        >>> density.density.tolist()
        [0.0, 0.0, 2.0, 0.0]
    """
    rows = unit_rows(check_features(z, "z"))
    bins = check_count("bins", bins, high=BINS)
    if bins & (bins - 1):
        raise ValueError(f"bins must be a power of two up to {BINS:,}, got {bins}.")
    counts = _cosine_counts(rows).cpu().view(bins, -1).sum(1).double()
    law = _uniform_cosine_law(rows.shape[1]).view(bins, -1)[:, -1]
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) * 2 / bins - 1
    return CosineDensity(centres, counts / counts.sum() * bins / 2, law.diff(prepend=law.new_zeros(1)) * bins / 2)


def _cosine_counts(rows: Tensor) -> Tensor:
    """(BINS,) number of pairs i < j of unit rows whose cosine is in each bin from -1 to 1."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=rows.device)
    for cosines in pair_values(rows, inner_products):
        bins = ((cosines + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        # Faster on a CPU; elsewhere bincount makes the host wait for the largest number.
        counts += (
            torch.bincount(bins, minlength=BINS)
            if bins.is_cpu
            else torch.zeros_like(counts).index_add_(0, bins, torch.ones_like(bins))
        )
    return counts


def _uniform_cosine_law(dimension: int) -> Tensor:
    """Distribution function of the cosine of two uniform points on the sphere in R^D, at the right edge of each bin."""
    if dimension == 1:  # two points: the cosine is -1 or 1
        law = torch.full((BINS,), 0.5, dtype=torch.float64)
        law[-1] = 1.0
        return law
    edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64)
    # Over the angle asin(x) the density is cos^(D - 2), which stays bounded at both ends also for D = 2.
    density = (1 - edges.square()).clamp_min(0).pow((dimension - 2) / 2)
    law = torch.cumulative_trapezoid(density, edges.asin())
    return law / law[-1]
