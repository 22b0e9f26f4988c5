"""Distance of labelled features from neural collapse: class means form a simplex, samples equal their class mean."""

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_classes
from contrastive_zoo.metrics.inputs import check_features, check_labels, number_classes
from contrastive_zoo.metrics.tiles import blocks, inner_products, pair_values, unit_rows


class NeuralCollapse(NamedTuple):
    """Distances of the class means from a simplex of unit vectors; all are 0 if the means form such a simplex."""

    unit_norm: float
    zero_sum: float
    equal_inner_product: float
    equal_inner_product_max: float


def neural_collapse(features: Tensor, labels: Tensor) -> NeuralCollapse:
    """Distances of the class means from an equiangular simplex (ETF) on the unit sphere.

        unit_norm                  mean_c | |m_c| - 1 |
        zero_sum                   | mean_c m_c |
        equal_inner_product        mean_{c != d} | cos(m_c, m_d) + 1 / (C - 1) |
        equal_inner_product_max    the largest of the same terms

    Jiang et al., "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural- vs
    Dimensional-Collapse", 2023. arXiv:2311.05139

    Args:
        features: (N, D) features, not normalised here: pass the loss's input, unit rows or rows in the unit ball.
        labels: (N,) integer classes, any values, at least two different ones.

    Raises:
        TypeError: `features` is not a floating-point or `labels` not an integer tensor.
        ValueError: shapes do not agree, a feature is not finite, or there is only one class.

    Examples:
        >>> etf = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
        >>> [round(distance, 6) for distance in neural_collapse(etf, torch.arange(3))]
        [0.0, 0.0, 0.0, 0.0]
    """
    rows = check_features(features, "features")
    values, numbers = number_classes(check_labels(labels, rows, "labels"))
    classes = len(values)
    check_classes("labels", classes)
    means = class_means(rows, numbers)
    total = largest = means.new_zeros(())
    for cosines in pair_values(unit_rows(means), inner_products):
        gaps = (cosines + 1 / (classes - 1)).abs()
        total, largest = total + gaps.sum(), torch.maximum(largest, gaps.max())
    return NeuralCollapse(
        unit_norm=float((torch.linalg.vector_norm(means, dim=1) - 1).abs().mean()),
        zero_sum=float(torch.linalg.vector_norm(means.mean(dim=0))),
        equal_inner_product=float(total) / (classes * (classes - 1) / 2),
        equal_inner_product_max=float(largest),
    )


def within_class_distance(features: Tensor, labels: Tensor) -> float:
    """Mean over classes of the mean distance of samples to their class mean; 0 is full collapse.

        mean_c mean_{i : y_i = c} |z_i - m_c|

    Jiang et al., "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural- vs
    Dimensional-Collapse", 2023. arXiv:2311.05139

    Args:
        features: (N, D) features, N >= 1, not normalised.
        labels: (N,) integer classes, any values.

    Raises:
        TypeError: `features` is not a floating-point or `labels` not an integer tensor.
        ValueError: shapes do not agree or a feature is not finite.

    Examples:
        >>> within_class_distance(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
        0.5
    """
    rows = check_features(features, "features", min_rows=1)
    _, classes = number_classes(check_labels(labels, rows, "labels"))
    means = class_means(rows, classes)
    totals = means.new_zeros(len(means))
    for piece, which in zip(blocks(rows), blocks(classes), strict=True):
        totals.index_add_(0, which, torch.linalg.vector_norm(piece.double() - means[which], dim=1))
    return float((totals / classes.bincount()).mean())


def class_means(rows: Tensor, classes: Tensor) -> Tensor:
    """Mean of the rows (N, D) of each class, (C, D) in float64; `classes` (N,) holds numbers from 0 to C - 1."""
    counts = classes.bincount()
    sums = rows.new_zeros(len(counts), rows.shape[1], dtype=torch.float64)
    for piece, which in zip(blocks(rows), blocks(classes), strict=True):
        sums.index_add_(0, which, piece.double())
    return sums / counts[:, None]
