"""Sums of a named kernel over pairs of rows, by tiles, gradient by hand.

Shapes: N rows of `x`, D features.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import distance_floor, get_kernel
from contrastive_zoo.pairwise.tiles import Tiles


def kernel_sum_forward(
    x: Tensor,
    squared_norms: Tensor | None,
    ids: Tensor | None,
    kernel: str,
    parameter: float,
    rounding: float,
    part: tuple[int, int],
) -> Tensor:
    """(N,) sums of the kernel of the squared distances to all rows with another id."""
    tiles, value = Tiles(x, None, ids, None, part), get_kernel(kernel).value
    floors = _floors(x, squared_norms, kernel, rounding)
    sums = x.new_zeros(x.shape[0])
    for i, j in tiles:
        distances = _squared_distances(tiles, squared_norms, i, j).clamp_(min=_floor(tiles, floors, i, j))
        values = tiles.exclude(value(distances, parameter), i, j, 0)
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
    rounding: float,
    part: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the squared norms; the latter is empty for rows of unit length."""
    tiles, derivative = Tiles(x, None, ids, None, part), get_kernel(kernel).derivative
    grad_x = torch.zeros_like(x)
    grad_norms = x.new_zeros(0 if squared_norms is None else x.shape[0])
    floors = _floors(x, squared_norms, kernel, rounding)
    for i, j in tiles:
        distances, floor = _squared_distances(tiles, squared_norms, i, j), _floor(tiles, floors, i, j)
        below = distances < floor
        slope = derivative(distances.clamp_(min=floor), parameter)
        weight = torch.add(grad[i, None], grad[None, j], out=tiles.scratch(1, *distances.shape))
        weight.mul_(slope).masked_fill_(below, 0)
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
    """A tile of squared distances, off by what rounding does to inner products."""
    distances = tiles.products(i, j, None, -2.0)
    if squared_norms is None:
        return distances.add_(2)
    return distances.add_(squared_norms[i, None]).add_(squared_norms[None, j])


def _floors(x: Tensor, squared_norms: Tensor | None, kernel: str, rounding: float) -> Tensor | float:
    """The floor of squared distances; (N,) halves where it depends on both rows."""
    if squared_norms is None:
        return distance_floor(kernel, x, rounding)
    return distance_floor(kernel, x, rounding, squared_norms) / 2


def _floor(tiles: Tiles, floors: Tensor | float, i: slice, j: slice) -> Tensor | float:
    """The floor for the pairs of a tile. It lies in the scratch memory that the weights of the pairs take later on."""
    if not isinstance(floors, Tensor):
        return floors
    rows, columns = floors[i, None], floors[None, j]
    return torch.add(rows, columns, out=tiles.scratch(1, len(rows), columns.shape[1]))
