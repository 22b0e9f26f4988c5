r"""The loss graph: edge weights measure how much two samples add to each other's loss when they share a batch.

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from contrastive_zoo.batch.features import HALF, stack_views
from contrastive_zoo.checks import check_count, check_number, check_pair
from contrastive_zoo.logspace import in_vectors
from contrastive_zoo.pairwise.kernels import LOG2_E

# Rows per chunk.
CHUNK = 128

# Largest logarithm of a product of two exponentials that does not overflow.
LOGIT_LIMIT = {torch.float32: 80.0, torch.float64: 700.0}


def unit_rows(z: Tensor, name: str) -> Tensor:
    """Rows of length 1, in float32 at least; raises if one is not finite."""
    operand = torch.float32 if z.dtype in HALF else z.dtype
    rows, *_ = stack_views(z, None, "sphere", operand, name=name, validate=True, second_order=True)
    return rows


def loss_graph(z1: Tensor, z2: Tensor, *, batch_size: int, temperature: float = 0.1) -> Tensor:
    r"""Pairwise terms of a lower bound of the loss of a batch: the affinity, whose exponential is the weight of an edge.

    $$A_{ij} = a_{ij} + a_{ji}, \qquad
    a_{ij} = \log\big(1 + (B-1) e^{(s_{ij} - s_{ii})/\tau}\big) + \log\big(1 + (B-1) e^{(s_{ji} - s_{ii})/\tau}\big)$$

    with $s_{ij} = \langle u_i, v_j \rangle$ of the rows scaled to length 1. By Jensen's inequality the InfoNCE loss of a batch,
    both directions added, is at least the mean of $A_{ij}/2$ over its pairs $i \ne j$: batches that cut few heavy edges have a
    high loss.

    Args:
        z1: (N, D) features of the first view or modality.
        z2: (N, D) features of the second.
        batch_size: B, samples in a batch.
        temperature: Divides the similarities; use the temperature of the loss.

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
    check_pair("z1", z1, "z2", z2)
    size = check_count("batch_size", batch_size)
    divisor = check_number("temperature", temperature, low=0, open_low=True)
    return affinity(unit_rows(z1, "z1"), unit_rows(z2, "z2"), size, divisor)


def affinity(u: Tensor, v: Tensor, batch_size: int, temperature: float) -> Tensor:
    """`loss_graph` for rows of length 1."""
    positive = torch.linalg.vecdot(u, v) / temperature
    positive -= math.log(batch_size - 1) if batch_size > 1 else -math.inf
    bounded = 2 * (2 / temperature + math.log(max(batch_size - 1, 1))) <= LOGIT_LIMIT[u.dtype]
    one_direction = _bounded_rows if bounded else _rows
    half = u.new_empty(len(u), len(u))
    for rows in torch.arange(len(u)).split(CHUNK):  # a chunk fits in the cache
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        half[part] = one_direction(u[part] / temperature, v, positive[part, None], positive)
    return half + half.T


def _rows(anchors: Tensor, v: Tensor, own: Tensor, positive: Tensor) -> Tensor:
    """log(1 + x) + log(1 + y), where x and y are the exponentials of the logits less the positive of the row or column."""
    logits = anchors @ v.T
    return _log1p_exp(logits - own).add_(_log1p_exp(logits - positive))


def _bounded_rows(anchors: Tensor, v: Tensor, own: Tensor, positive: Tensor) -> Tensor:
    """`_rows` as log(1 + x + y + xy), if this cannot overflow: one exponential and one logarithm for both terms."""
    e = ((LOG2_E * anchors) @ v.T).exp2_()
    x = e * (-own).exp()
    y = e.mul_((-positive).exp())
    return in_vectors(torch.addcmul(x, x, y).add_(y)).log1p()


def _log1p_exp(x: Tensor) -> Tensor:
    """The softplus, exact in float64: the default threshold of 20 is too low, since 1 + e^-20 != 1."""
    return softplus(in_vectors(x), threshold=40)
