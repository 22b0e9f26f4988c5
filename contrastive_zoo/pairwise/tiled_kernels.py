"""Sums of a named kernel over pairs of rows, by tiles, gradient by hand.

Shapes: N rows of `x`, D features.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import get_kernel
from contrastive_zoo.pairwise.tiles import Tiles


def kernel_sum_forward(
    x: Tensor, squared_norms: Tensor | None, ids: Tensor | None, kernel: str, parameter: float, part: tuple[int, int]
) -> Tensor:
    """(N,) sums of the kernel of the squared distances to all rows with another id."""
    tiles, value = Tiles(x, None, ids, None, part), get_kernel(kernel).value
    sums = x.new_zeros(x.shape[0])
    for i, j in tiles:
        values = tiles.exclude(value(_squared_distances(tiles, squared_norms, i, j), parameter), i, j, 0)
        sums[i] += values.sum(1)
        if tiles.mirrored(i, j):
            sums[j] += values.sum(0)
    return sums


def kernel_sum_backward(
    grad: Tensor,
    x: Tensor,
    squared_norms: Tensor | None,
    ids: Tensor | None,
    kernel: str,
    parameter: float,
    part: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the squared norms; the latter is empty for rows of unit length."""
    tiles, derivative = Tiles(x, None, ids, None, part), get_kernel(kernel).derivative
    grad_x = torch.zeros_like(x)
    grad_norms = x.new_zeros(0 if squared_norms is None else x.shape[0])
    floor = torch.finfo(x.dtype).eps
    for i, j in tiles:
        distances = _squared_distances(tiles, squared_norms, i, j)
        weight = torch.add(grad[i, None], grad[None, j], out=tiles.scratch(1, *distances.shape))
        weight.mul_(derivative(distances, parameter)).masked_fill_(distances == floor, 0)
        tiles.exclude(weight, i, j, 0)
        if squared_norms is not None:
            grad_norms[i] += weight.sum(1)
            if tiles.mirrored(i, j):
                grad_norms[j] += weight.sum(0)
        grad_x[i].addmm_(weight, x[j], alpha=-2)
        if tiles.mirrored(i, j):
            grad_x[j].addmm_(weight.T, x[i], alpha=-2)
    return grad_x, grad_norms


def _squared_distances(tiles: Tiles, squared_norms: Tensor | None, i: slice, j: slice) -> Tensor:
    """A tile of squared distances, floored at the resolution of the dtype: coinciding rows leave no finite Riesz energy."""
    distances = tiles.products(i, j, None, -2.0)
    if squared_norms is None:
        distances.add_(2)
    else:
        distances.add_(squared_norms[i, None]).add_(squared_norms[None, j])
    return distances.clamp_(min=torch.finfo(distances.dtype).eps)
