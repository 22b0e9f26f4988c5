r"""The graph of how much two samples add to each other's loss when they share a batch.

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from contrastive_zoo.checks import check_count, check_features, check_number, check_same
from contrastive_zoo.features import HALF, stack_views


def unit_rows(z: Tensor, name: str) -> Tensor:
    """Rows of length 1, in float32 at least; raises if one is not finite."""
    operand = torch.float32 if z.dtype in HALF else z.dtype
    rows, _ = stack_views(z, None, "sphere", operand, name=name, validate=True, second_order=True)
    return rows


def loss_graph(z1: Tensor, z2: Tensor, *, batch_size: int, temperature: float = 0.1) -> Tensor:
    r"""Lower bounds of the loss of a batch, pair by pair: the affinity whose exponential is the weight of an edge.

    $$A_{ij} = a_{ij} + a_{ji}, \qquad
    a_{ij} = \log\big(1 + (B-1) e^{(s_{ij} - s_{ii})/\tau}\big) + \log\big(1 + (B-1) e^{(s_{ji} - s_{ii})/\tau}\big)$$

    with $s_{ij} = \langle u_i, v_j \rangle$ of the rows scaled to length 1. By Jensen's inequality the InfoNCE loss of a batch,
    both directions added, is at least the mean of $A_{ij}/2$ over its pairs $i \ne j$: batches that cut few heavy edges have a
    high loss.

    Args:
        z1: (N, D) features of the first view or modality.
        z2: (N, D) features of the second.
        batch_size: B, samples in a batch.
        temperature: Divides the similarities; that of the loss.

    Returns:
        (N, N), symmetric.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes or devices differ, a feature is not finite, or a number is out of range.

    Examples:
        >>> import torch
        >>> z = torch.eye(3)
        >>> loss_graph(z, z, batch_size=2, temperature=1.0)[0]
        tensor([2.7726, 1.2530, 1.2530])
    """
    check_features("z1", z1, (2,))
    check_features("z2", z2, (2,))
    check_same("z1", z1, "z2", z2)
    check_count("batch_size", batch_size)
    check_number("temperature", temperature, low=0, open_low=True)
    return affinity(unit_rows(z1, "z1"), unit_rows(z2, "z2"), batch_size, temperature)


def affinity(u: Tensor, v: Tensor, batch_size: int, temperature: float) -> Tensor:
    """`loss_graph` of rows that have length 1."""
    similarity = (u / temperature) @ v.T
    positive = similarity.diagonal() - (math.log(batch_size - 1) if batch_size > 1 else -math.inf)
    half = _log1p_exp(similarity - positive[:, None])
    half += _log1p_exp(similarity - positive)
    return half + half.T


def _log1p_exp(x: Tensor) -> Tensor:
    """The softplus, exact to the last digit also where float64 can tell 1 + e^-x from 1."""
    return softplus(x, threshold=40)
