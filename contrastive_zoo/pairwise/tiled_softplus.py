r"""Sums of softplus over pairs of rows, by tiles, gradient by hand.

A sweep is *bounded* when all logits z are known to be so small that $e^z$ does not overflow. Its tiles hold $e^z$, from which
both softplus and its derivative are cheap; those of any other sweep hold z.

Shapes: N rows of `x`, M rows of `keys`, D features. `README.md` beside this file derives the formulas.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.pairwise.tiles import Tiles

# Largest logit of a bounded sweep.
LOGIT_LIMIT = {torch.float32: 80.0, torch.float64: 700.0}


class ClassTiles(Tiles):
    """Visits the pairs of different rows with equal ids, each pair of tiles once; rows come sorted by id.

    Rows fall into blocks that share no id: one large class, or several small ones. Only pairs within a block are visited. Of
    ids on an accelerator nothing is known, and all rows are one block.
    """

    def __init__(self, x: Tensor, ids: Tensor) -> None:
        super().__init__(x, None, ids, None)
        self._classes = ids
        self._blocks = self._packed() if ids.is_cpu else [(0, x.shape[0])]

    def _packed(self) -> list[tuple[int, int]]:
        """First and last row of each block; classes share one of at most a quarter of a tile."""
        blocks, start, stop = [], 0, 0
        for count in torch.unique_consecutive(self._classes, return_counts=True)[1].tolist():
            if start < stop and stop + count - start > self.size // 4:
                blocks.append((start, stop))
                start = stop
            stop += count
        return [*blocks, (start, stop)]

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for start, stop in self._blocks:
            for row in range(start, stop, self.size):
                for column in range(row, stop, self.size):
                    yield slice(row, min(row + self.size, stop)), slice(column, min(column + self.size, stop))

    def exclude(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        """Overwrites, in a tile of values, the pairs of two classes and of a row with itself."""
        if rows.start == columns.start:
            values.fill_diagonal_(fill)
        if self._classes.is_cpu and bool(self._classes[rows.start] == self._classes[columns.stop - 1]):
            return values
        classes = self._classes.to(values.device)
        return values.masked_fill_(classes[rows, None] != classes[None, columns], fill)


class Gradient:
    """Gradient of the sums for an upstream gradient (N,), added up tile by tile.

    Attributes:
        upstream: (N,).
        x: (N, D); where x is its own keys, both roles of a row together.
        keys: (M, D); the same as x where x is its own keys, None where it is not needed.
        bias: (N,).
    """

    def __init__(self, tiles: Tiles, upstream: Tensor, needs_keys: bool) -> None:
        self.upstream, self.x, self.bias = upstream, torch.zeros_like(tiles.x), torch.zeros_like(upstream)
        self.keys = self.x if tiles.symmetric else torch.zeros_like(tiles.keys) if needs_keys else None

    def spread(self, tiles: Tiles, i: slice, j: slice, weight: Tensor) -> None:
        """Adds a tile of derivatives in the scaled similarities."""
        self.x[i].addmm_(weight, tiles.keys[j])
        if self.keys is not None:
            self.keys[j].addmm_(weight.T, tiles.x[i])

    def finished(self, tiles: Tiles, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of x, keys (empty where x is its own keys, or where it is not needed), scale and bias."""
        # The sums depend on scale and x through scale * x only, so the two derivatives are tied to each other.
        of_scale = (self.x * tiles.x).sum() / (2 if tiles.symmetric else 1)
        of_keys = self.x.new_empty(0) if tiles.symmetric or self.keys is None else self.keys.mul_(scale)
        return self.x.mul_(scale), of_keys, of_scale, self.bias


def softplus_sweep(
    tiles: Tiles, scale: Tensor, bias: Tensor, norm_bound: float, *, sums: Tensor | None, gradient: Gradient | None
) -> None:
    """Visits all tiles once and adds to the sums (N,), to the gradient, or to both."""
    bounded = _is_bounded(tiles, scale, bias, norm_bound)
    if bounded:
        scale, bias = scale * LOG2_E, bias * LOG2_E
    anchors = tiles.x * scale
    for i, j in tiles:
        a, b = anchors[i], tiles.keys[j]
        rows, of_rows, columns, of_columns = (tiles.scratch(number, a.shape[0], b.shape[0]) for number in range(4))
        torch.mm(a, b.T, out=rows)
        mirrored = tiles.mirrored(i, j)
        if mirrored:
            _finish(tiles, torch.add(rows, bias[None, j], out=columns), i, j, bounded)
        _finish(tiles, rows.add_(bias[i, None]), i, j, bounded)
        if sums is not None:
            sums[i] += _softplus(rows, bounded, of_rows).sum(1)
            if mirrored:
                sums[j] += _softplus(columns, bounded, of_columns).sum(0)
        if gradient is not None:
            weight = _sigmoid(rows, bounded, of_rows).mul_(gradient.upstream[i, None])
            gradient.bias[i] += weight.sum(1)
            if mirrored:
                _sigmoid(columns, bounded, of_columns).mul_(gradient.upstream[None, j])
                gradient.bias[j] += of_columns.sum(0)
                weight.add_(of_columns)
            gradient.spread(tiles, i, j, weight)


def _is_bounded(tiles: Tiles, scale: Tensor, bias: Tensor, norm_bound: float) -> bool:
    """Whether all logits are known, without waiting for an accelerator, to be far from overflow."""
    if not bias.is_cpu:
        return False
    bound = norm_bound * norm_bound
    if norm_bound == torch.inf:
        bound = float(tiles.x.norm(dim=1).max()) * float(tiles.keys.norm(dim=1).max())
    return float(scale.abs()) * bound + float(bias.max()) <= LOGIT_LIMIT[bias.dtype]


def _finish(tiles: Tiles, logits: Tensor, i: slice, j: slice, bounded: bool) -> None:
    """In place: powers of 2 of a tile in a bounded sweep, else the logits; pairs that do not count add nothing."""
    if bounded:
        tiles.exclude(logits.exp2_(), i, j, 0)
    else:
        tiles.exclude(logits, i, j, -torch.inf)


def _softplus(tile: Tensor, bounded: bool, out: Tensor) -> Tensor:
    """Of a finished tile."""
    # From 40 on, softplus(z) is z in float64 too.
    return torch.log1p(tile, out=out) if bounded else torch.nn.functional.softplus(tile, threshold=40)


def _sigmoid(tile: Tensor, bounded: bool, out: Tensor) -> Tensor:
    """The derivative of the softplus, of a finished tile."""
    return torch.div(tile, torch.add(tile, 1, out=out), out=out) if bounded else torch.sigmoid(tile, out=out)
