r"""Sums of squared similarities without a matrix of pairs, by the Gram matrix of the keys.

$$\sum_j \langle x_i, k_j \rangle^2 = x_i^\top (K^\top K)\, x_i$$

The Gram matrix is (D, D). With no more keys than features the similarities are the smaller matrix, and are taken themselves.
The few other pairs with equal ids are taken off again, id by id and in the smaller of the two ways.

Shapes: N rows of `x` and of `keys`, row i of both with id i; D features.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator, without_autocast


@operator("contrastive_zoo::square_sum", "(Tensor x, Tensor keys, Tensor ids) -> Tensor")
def square_sum(x: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
    """(N,) sums over the keys with another id."""
    with without_autocast(x):
        sums = _sums(x, keys)
        for places in _groups(ids, x.device):
            sums[places] -= _sums(x[places], keys[places])
        return sums


@square_sum.register_fake
def _(x: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
    return x.new_empty(x.shape[0])


@operator(
    "contrastive_zoo::square_sum_backward",
    "(Tensor grad, Tensor x, Tensor keys, Tensor ids, bool[] needs) -> (Tensor, Tensor)",
)
def square_sum_backward(grad: Tensor, x: Tensor, keys: Tensor, ids: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """Gradients of x and keys, empty where none is needed."""
    with without_autocast(x):
        gradients = _gradients(grad, x, keys, needs)
        for places in _groups(ids, x.device):
            groups = _gradients(grad[places], x[places], keys[places], needs)
            for gradient, of_group, need in zip(gradients, groups, needs, strict=True):
                if need:
                    gradient[places] -= of_group
        return gradients


@square_sum_backward.register_fake
def _(grad: Tensor, x: Tensor, keys: Tensor, ids: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) if need else t.new_empty(0) for t, need in zip((x, keys), needs, strict=True))


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    needs = list(ctx.needs_input_grad[:2])
    gradients = compute(grad, *ctx.saved_tensors, needs)
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), None


square_sum.differentiate(square_sum_backward, _setup, _gradient)


def dense_square_sum(x: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
    """The same from the matrix of all pairs, by plain autograd."""
    similarity, there = x @ keys.T, ids.to(x.device)
    return similarity.masked_fill(there[:, None] == there, 0).square().sum(1)


def _groups(ids: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Positions (n, m) of the rows of the n ids that come m times, for every m above 1."""
    ordered, order = ids.sort(stable=True)
    counts = torch.unique_consecutive(ordered, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    for size in counts[counts > 1].unique().tolist():
        yield order[starts[counts == size][:, None] + torch.arange(size, device=ids.device)].to(device)


def _similarities(x: Tensor, keys: Tensor) -> Tensor:
    """(..., m, m), 0 between a row and its own key."""
    similarities = x @ keys.mT
    similarities.diagonal(dim1=-2, dim2=-1).zero_()
    return similarities


def _sums(x: Tensor, keys: Tensor) -> Tensor:
    """(..., m) sums over the keys of a group but the own, of (..., m, D) rows and keys."""
    if x.shape[-2] <= x.shape[-1]:
        return _similarities(x, keys).square_().sum(-1)
    return torch.linalg.vecdot(x @ (keys.mT @ keys), x) - torch.linalg.vecdot(x, keys).square()


def _gradients(grad: Tensor, x: Tensor, keys: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """Gradients of `_sums`, of rows and keys, empty where none is needed."""
    of_rows, of_keys, grad = x.new_empty(0), x.new_empty(0), 2 * grad[..., None]
    if x.shape[-2] <= x.shape[-1]:
        weight = _similarities(x, keys).mul_(grad)
        return weight @ keys if needs[0] else of_rows, weight.mT @ x if needs[1] else of_keys
    own, scaled = torch.linalg.vecdot(x, keys)[..., None], grad * x
    if needs[0]:
        of_rows = (x @ (keys.mT @ keys)).addcmul_(own, keys, value=-1).mul_(grad)
    if needs[1]:
        of_keys = (keys @ (x.mT @ scaled)).addcmul_(own, scaled, value=-1)
    return of_rows, of_keys
