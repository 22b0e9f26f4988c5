r"""Negatives drawn from the rows of the batch: K for each anchor, independently and with replacement.

    m_i = log 1/K sum_k exp(s_{i, n_ik}),    n_ik ~ q_i, proportional to exp(beta s_in)

Gradients flow through the similarities, not through q. Anchors are processed in blocks, so no (N, N) matrix is stored.

Shapes: N rows, D features, A anchors, R anchors of a block, K draws for each.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.devices import beside
from contrastive_zoo.operators import operator
from contrastive_zoo.samplers.randomness import ONCE, DrawTable

# Similarities per block of anchors; about 16 MiB including temporaries.
BLOCK_NUMEL = 2**20


def drawn_log_mean(
    x: Tensor, anchors: slice, excluded: Tensor | None, *, beta: float, num_negatives: int, seed: Tensor
) -> Tensor:
    """(A,) log of the mean of exp(s) over the draws of each anchor; 0, without gradient, for an anchor without negatives.

    Differentiable once.

    Args:
        x: (N, D) rows.
        anchors: Which rows are the anchors.
        excluded: (N,) ids; rows with the anchor's id are not its negatives. None: all rows are, including the anchor.
        beta: Strength of the preference for hard negatives.
        num_negatives: K.
        seed: What `step_seed` returned.
    """
    values: Tensor = draw_negatives(x, anchors.start, anchors.stop - anchors.start, excluded, beta, num_negatives, seed)[0]
    return values


def _blocks(first: int, count: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Rows of each block of anchors, starting at row ``first``, and the block's positions among the anchors."""
    size = max(1, BLOCK_NUMEL // columns)
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield slice(first + start, first + stop), slice(start, stop)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """(R, K) columns with probabilities proportional to the weights (R, N); the last one where all weights are 0.

    Args:
        weights: (R, N), at least 0.
        uniform: (R, K) float64 draws from [0, 1).
    """
    sums = weights.cumsum(1, dtype=torch.float64)
    total = sums[:, -1:]
    # The first cumulative sum above the draw belongs to a positive weight. Rounding up to the total would exceed all sums.
    sought = (uniform * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, sought, right=True).clamp_max_(weights.shape[1] - 1)


@operator(
    "contrastive_zoo::draw_negatives",
    "(Tensor x, SymInt first, SymInt count, Tensor? excluded, float beta, SymInt num_negatives, Tensor seed)"
    " -> (Tensor, Tensor, Tensor)",
)
def draw_negatives(
    x: Tensor, first: int, count: int, excluded: Tensor | None, beta: float, num_negatives: int, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `drawn_log_mean`; also returns the draws (A, K) and the softmax of their similarities, zeros without negatives."""
    log_mean, shares = x.new_empty(count), x.new_empty(count, num_negatives)
    drawn = torch.empty(count, num_negatives, dtype=torch.int64, device=x.device)
    ids, draws = None if excluded is None else beside(excluded, x), DrawTable(seed, x.device)
    for rows, place in _blocks(first, count, len(x)):
        similarity = x[rows] @ x.T
        weights = similarity * beta
        if ids is not None:
            weights.masked_fill_(ids[rows, None] == ids, -torch.inf)
        largest = weights.amax(1, keepdim=True)
        some = largest > -torch.inf
        weights.sub_(torch.where(some, largest, 0)).exp_()
        drawn[place] = draw(weights, draws.uniform(rows, slice(0, num_negatives), torch.float64))
        negative = similarity.gather(1, drawn[place])
        shares[place] = torch.where(some, negative.softmax(1), 0)
        log_mean[place] = torch.where(some[:, 0], negative.logsumexp(1) - math.log(num_negatives), 0)
    return log_mean, drawn, shares


@draw_negatives.register_fake
def _(
    x: Tensor, first: int, count: int, excluded: Tensor | None, beta: float, num_negatives: int, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    drawn = x.new_empty(count, num_negatives, dtype=torch.int64)
    return x.new_empty(count), drawn, x.new_empty(count, num_negatives)


@operator(
    "contrastive_zoo::draw_negatives_backward",
    "(Tensor grad, Tensor x, SymInt first, Tensor drawn, Tensor shares) -> Tensor",
)
def draw_negatives_backward(grad: Tensor, x: Tensor, first: int, drawn: Tensor, shares: Tensor) -> Tensor:
    """Gradient of x from all anchors, which start at row ``first``."""
    gradient = torch.zeros_like(x)
    for rows, place in _blocks(first, len(grad), len(x)):
        weight = x.new_zeros(rows.stop - rows.start, len(x))
        weight.scatter_add_(1, drawn[place], shares[place] * grad[place, None])
        gradient[rows] += weight @ x
        gradient.addmm_(weight.T, x[rows])
    return gradient


@draw_negatives_backward.register_fake
def _(grad: Tensor, x: Tensor, first: int, drawn: Tensor, shares: Tensor) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, ctx.first, *_ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, *output[1:])


def _gradient(ctx: Any, compute: Any, grad: Tensor, *_: Any) -> Any:
    x, drawn, shares = ctx.saved_tensors
    return compute(grad, x, ctx.first, drawn, shares), None, None, None, None, None, None


draw_negatives.differentiate(draw_negatives_backward, _setup, _gradient, advice=ONCE)
