r"""The log-sum-exp with a scale per row, and beside it the mean similarity of each row under its softmax.

$$\ell_i = \log \sum_j e^{c_i s_{ij}}, \qquad m_i = \sum_j e^{c_i s_{ij} - \ell_i} s_{ij} = \partial \ell_i / \partial c_i$$

The mean comes from the tiles of the forward pass; it carries no gradient, and is the one of the scale.

Shapes: N rows of `x`, M rows of `keys`, D features; `scale` (N,).
"""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator, without_autocast
from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.pairwise.tiles import Tiles

# Logits up to this size, their sums and the inverses of these are normal numbers.
LOGIT_LIMIT = {torch.float32: 60.0, torch.float64: 600.0}


@operator(
    "contrastive_zoo::logsumexp_with_mean",
    "(Tensor x, Tensor? keys, Tensor scale, Tensor? ids, Tensor? key_ids, float norm_bound) -> (Tensor, Tensor)",
)
def logsumexp_with_mean(
    x: Tensor, keys: Tensor | None, scale: Tensor, ids: Tensor | None, key_ids: Tensor | None, norm_bound: float
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps (N,), -inf for a row without keys, and means (N,), 0 for such a row."""
    with without_autocast(x):
        tiles = Tiles(x, keys, ids, key_ids)
        shift = torch.zeros_like(scale) if _is_bounded(scale, norm_bound, x.dtype) else _largest_logits(tiles, scale)
        total, weighted = torch.zeros_like(scale), torch.zeros_like(scale)
        for i, j in tiles:
            products = tiles.products(i, j, None)
            for rows, by_row in _directions(tiles, i, j):
                e = _logits(tiles, products, scale * LOG2_E, -shift * LOG2_E, rows, by_row).exp2_()
                e = _oriented(tiles.exclude(e, i, j, 0), by_row)
                total[rows] += e.sum(1)
                weighted[rows] += e.mul_(_oriented(products, by_row)).sum(1)
        empty = total == 0
        return total.log() + shift, torch.where(empty, 0, weighted / torch.where(empty, 1, total))


@logsumexp_with_mean.register_fake
def _(
    x: Tensor, keys: Tensor | None, scale: Tensor, ids: Tensor | None, key_ids: Tensor | None, norm_bound: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scale), torch.empty_like(scale)


@operator(
    "contrastive_zoo::logsumexp_with_mean_backward",
    "(Tensor grad, Tensor sums, Tensor x, Tensor? keys, Tensor scale, Tensor? ids, Tensor? key_ids) -> (Tensor, Tensor)",
)
def logsumexp_with_mean_backward(
    grad: Tensor,
    sums: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and keys; the latter is empty where rows are their own keys."""
    with without_autocast(x):
        tiles = Tiles(x, keys, ids, key_ids)
        shift = torch.where(sums == -torch.inf, -torch.inf, -sums)  # a row without keys has no probabilities
        grad_x, grad_keys = torch.zeros_like(x), x.new_zeros((0,) if keys is None else keys.shape)
        for i, j in tiles:
            products = tiles.products(i, j, None)
            weight = _derivative(tiles, products, scale, shift, grad, i, True)
            if tiles.symmetric:
                weight.add_(_derivative(tiles, products, scale, shift, grad, j, False))
            tiles.exclude(weight, i, j, 0)
            grad_x[i].addmm_(weight, tiles.keys[j])
            if tiles.mirrored(i, j):
                grad_x[j].addmm_(weight.T, x[i])
            elif not tiles.symmetric:
                grad_keys[j].addmm_(weight.T, x[i])
        return grad_x, grad_keys


@logsumexp_with_mean_backward.register_fake
def _(
    grad: Tensor,
    sums: Tensor,
    x: Tensor,
    keys: Tensor | None,
    scale: Tensor,
    ids: Tensor | None,
    key_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((0,) if keys is None else keys.shape)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, keys, scale, ids, key_ids, _ = inputs
    ctx.save_for_backward(*output, x, keys, scale, ids, key_ids)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, compute: Any, grad: Tensor, _: Any) -> Any:
    sums, mean, *inputs = ctx.saved_tensors
    grad_x, grad_keys = compute(grad, sums, *inputs)
    return grad_x, None if inputs[1] is None else grad_keys, grad * mean, None, None, None


logsumexp_with_mean.differentiate(logsumexp_with_mean_backward, _setup, _gradient)


def _is_bounded(scale: Tensor, norm_bound: float, dtype: torch.dtype) -> bool:
    """Whether all logits are known, without waiting for an accelerator, to be far from overflow."""
    return scale.is_cpu and float(scale.abs().max()) * norm_bound**2 <= LOGIT_LIMIT[dtype]


def _directions(tiles: Tiles, i: slice, j: slice) -> list[tuple[slice, bool]]:
    """The rows that a tile holds logits of: along its rows, and along its columns where it stands for its transpose."""
    return [(i, True), (j, False)] if tiles.mirrored(i, j) else [(i, True)]


def _oriented(tile: Tensor, by_row: bool) -> Tensor:
    return tile if by_row else tile.T


def _logits(tiles: Tiles, products: Tensor, scale: Tensor, shift: Tensor, rows: slice, by_row: bool) -> Tensor:
    """A tile of shifted logits of some rows, which lie along its rows or along its columns; in scratch memory."""
    c, b = (t[rows, None] if by_row else t[None, rows] for t in (scale, shift))
    return torch.addcmul(b, products, c, out=tiles.scratch(1 if by_row else 2, *products.shape))


def _largest_logits(tiles: Tiles, scale: Tensor) -> Tensor:
    """(N,) largest logit of each row, 0 for a row without keys."""
    largest, no_shift = torch.full_like(scale, -torch.inf), torch.zeros_like(scale)
    for i, j in tiles:
        products = tiles.products(i, j, None)
        for rows, by_row in _directions(tiles, i, j):
            logits = tiles.exclude(_logits(tiles, products, scale, no_shift, rows, by_row), i, j, -torch.inf)
            torch.maximum(largest[rows], _oriented(logits, by_row).amax(1), out=largest[rows])
    return torch.where(largest == -torch.inf, 0, largest)


def _derivative(
    tiles: Tiles, products: Tensor, scale: Tensor, shift: Tensor, grad: Tensor, rows: slice, by_row: bool
) -> Tensor:
    """A tile of derivatives in the similarities, of the sums of some rows times their upstream gradient."""
    factor = (grad * scale)[rows]
    e = _logits(tiles, products, scale * LOG2_E, shift * LOG2_E, rows, by_row).exp2_()
    return e.mul_(factor[:, None] if by_row else factor)
