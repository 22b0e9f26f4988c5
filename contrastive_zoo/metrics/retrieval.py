"""Cross-view or cross-modal retrieval accuracy: how often the counterpart of a row is among its nearest rows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_count
from contrastive_zoo.metrics.inputs import check_pair
from contrastive_zoo.metrics.tiles import blocks, inner_products, unit_rows


class RetrievalAccuracy(NamedTuple):
    """Top-k accuracy for each requested k, with the rows of `z1` as queries, and with the rows of `z2` as queries."""

    z1_to_z2: dict[int, float]
    z2_to_z1: dict[int, float]


def retrieval_accuracy(z1: Tensor, z2: Tensor, k: Sequence[int] = (1, 5)) -> RetrievalAccuracy:
    """Fraction of rows that find their counterpart among the `k` rows with the largest cosine in the other set ("R@k").

        mean_i [ #{j : cos(z1_i, z2_j) > cos(z1_i, z2_i)} < k ],        and the same with z1 and z2 exchanged

    Rows tied with the counterpart (to rounding) are taken in random order, and the value is the expectation over that
    order: collapsed features get k / N, not 1. Where k >= N every row finds its counterpart.

    Args:
        z1: (N, D) features of one view or modality; normalised inside.
        z2: (N, D) features of the other view or modality, in the same order.
        k: One or more numbers of candidates.

    Raises:
        TypeError: `z1` or `z2` is not a floating-point tensor.
        ValueError: the shapes or devices differ, an entry is not finite, or `k` holds anything but positive integers.

    Examples:
        >>> accuracy = retrieval_accuracy(torch.eye(3), torch.eye(3)[[0, 2, 1]], k=(1, 3))
        >>> round(accuracy.z1_to_z2[1], 4), accuracy.z2_to_z1[3]
        (0.3333, 1.0)
    """
    x, y = check_pair(z1, z2)
    k = [check_count("each k", count) for count in k]
    x, y = unit_rows(x), unit_rows(y)
    return RetrievalAccuracy(_top_k(x, y, k), _top_k(y, x, k))


def _top_k(queries: Tensor, keys: Tensor, k: Sequence[int]) -> dict[int, float]:
    correct = {count: queries.new_zeros((), dtype=torch.float64) for count in k}
    for i, rows in enumerate(blocks(queries)):
        ahead, tied = _ahead_and_tied(rows, blocks(keys), i)
        for count, total in correct.items():
            total += ((count - ahead) / (tied + 1)).clamp(0, 1).sum(dtype=torch.float64)
    return {count: float(total) / len(queries) for count, total in correct.items()}


def _ahead_and_tied(rows: Tensor, keys: tuple[Tensor, ...], own: int) -> tuple[Tensor, Tensor]:
    """Numbers of keys nearer than each row's counterpart, and tied with it; the counterparts are in piece `own` of the keys."""
    positive = (rows * keys[own]).sum(dim=1, keepdim=True)
    margin = 16 * torch.finfo(rows.dtype).eps  # equal rows may differ by rounding from tile to tile
    ahead = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    tied = torch.zeros_like(ahead)
    for j, piece in enumerate(keys):
        gaps = inner_products(rows, piece) - positive
        if j == own:
            gaps.fill_diagonal_(-math.inf)
        ahead += (gaps > margin).sum(dim=1)
        tied += (gaps.abs() <= margin).sum(dim=1)
    return ahead, tied
