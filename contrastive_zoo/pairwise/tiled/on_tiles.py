"""Base class of terms on tiles, which add tiles to sums and compute slopes, the derivatives of the loss in the similarities.

Shapes: N rows, M keys, K scales; i and j are the rows and columns of a tile.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_zoo.pairwise.tiled.tiles import Sides, Tiles


def _entries(values: Tensor, side: slice) -> Tensor:
    """(1, n) entries for one side of a tile, of values (1, N); all of them without the cost of a view."""
    return values if side.stop - side.start == values.shape[1] else values[:, side]


class OnTiles(ABC):
    """A term on the tiles of one set of rows, for one pass.

    A term may overwrite a tile. Slopes of pairs that do not count must be 0. Of the buffers of `Tiles.scratch`, 0 holds the
    tile unless tiles are kept, 1 holds the slopes, `_mirror` takes 3, and 2 is free. In the backward pass the gradient of the
    offset is ``totals[1][0]``.

    Attributes:
        factor: Factor applied to similarities in the matrix product.
        chain: Factor applied at the end to the gradients of rows and keys, which are accumulated from `slopes`.
        scale_from_products: Whether the gradient of the scale follows from the gradients of rows and keys.
        totals: Accumulators over tiles: the sums or, in the backward pass, gradients of biases, squared norms or scales.
        weights: Factors of `slopes` for columns and for rows.
        needs_scale: Whether tiles must accumulate the gradient of the scale.
    """

    factor: float = 1.0
    chain: Tensor | float = 1.0
    scale_from_products = needs_scale = False
    weights: Sides

    def __init__(self, tiles: Tiles, scales: int = 1) -> None:
        self.tiles, self.totals = tiles, tiles.zeros(scales)

    @abstractmethod
    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        """Add a tile to the sums. The method may overwrite the tile; if tiles are kept, `slopes` gets the overwritten tile."""

    @abstractmethod
    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        """Derivatives in the similarities divided by `chain`, (i, j), in a buffer; ``added``: `add` has processed the tile."""

    def sums(self) -> Sides:
        """The sums over all tiles."""
        return self.totals

    def means(self) -> Tensor:
        """(K, N) mean similarities, or an empty tensor for terms without means."""
        return self.tiles.x.new_empty(len(self.totals[1]), 0)

    def begin(self, sums: Sides, means: Tensor, grads: Sides, needs_scale: bool) -> None:
        """Prepare for `slopes`, given the forward pass's results, gradients of the sums, and whether the scale needs one."""
        self.weights = grads

    def grad_scale(self, x: Tensor, keys: Tensor) -> Tensor:
        """Gradient of a scale c, from the gradient of c x or of c keys: the sums depend on c only through this product."""
        if not x.numel():
            return (keys * self.tiles.keys).sum()
        return (x * self.tiles.x).sum() / (2 if self.tiles.symmetric else 1)

    def _each(self, function: Callable[..., Tensor], *sides: Sides) -> Sides:
        """Apply a function to columns and to rows; only once if the rows are the columns."""
        columns, rows = zip(*sides, strict=True)
        of_rows = function(*rows)
        return of_rows if self.tiles.symmetric else function(*columns), of_rows

    def _add(self, values: Tensor, i: slice, j: slice) -> None:
        """Add values shared by rows and columns to the totals of both."""
        for axis, side in self.tiles.sides(i, j):
            _entries(self.totals[axis], side).add_(values.sum(axis))

    def _weighted(self, values: Tensor, i: slice, j: slice) -> Tensor:
        """Values shared by rows and columns, times the sum of the weights of both."""
        (columns, rows), out = self.weights, self.tiles.scratch(1, *values.shape)
        of_rows = _entries(rows, i).T
        if not self.tiles.columns:
            return torch.mul(values, of_rows, out=out)
        return torch.add(of_rows, _entries(columns, j), out=out).mul_(values)

    def _mirror(self, slopes: Tensor, i: slice, j: slice) -> Tensor:
        """Add the transpose to slopes of a diagonal tile, where each row is also a column."""
        if self.tiles.symmetric and not self.tiles.mirrored(i, j):
            slopes.add_(self.tiles.scratch(3, *slopes.shape).copy_(slopes.T))
        return slopes
