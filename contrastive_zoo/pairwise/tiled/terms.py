"""The terms on one tile: their contributions to the sums, and slopes, the derivatives of the loss in the similarities.

A tile holds similarities times the ``factor`` of its term. Excluded pairs contribute nothing. Logits are *bounded* if the host
knows that their exponentials neither overflow nor underflow: then no maximum is needed. exp2 takes less time than exp, so
factors of log2(e) are multiplied in early.

Shapes: N rows, M keys, K scales; i and j are the rows and columns of a tile.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from contrastive_zoo.devices import written_beside
from contrastive_zoo.pairwise.kernels import LOG2_E, distance_floor, get_kernel
from contrastive_zoo.pairwise.terms import LOGIT_LIMIT, KernelSum, LogSumExp, Softplus, Squares, Term
from contrastive_zoo.pairwise.tiled.on_tiles import OnTiles
from contrastive_zoo.pairwise.tiled.tiles import Sides, Tiles

# Largest logit whose exponential does not overflow.
OVERFLOW_LIMIT = {torch.float32: 80.0, torch.float64: 700.0}


def on_tiles(term: Term, tiles: Tiles, number: int = 0) -> OnTiles:
    """The term on the tiles of set ``number`` of rows."""
    if isinstance(term, KernelSum):
        norms = term.squared_norms
        return _Kernels(term, tiles, norms if norms is None or norms.dim() == 1 else norms[number])
    if isinstance(term, Squares):
        return _Squares(tiles)
    if not isinstance(term, Softplus | LogSumExp):
        raise TypeError(f"tiled has no code for {type(term).__name__}. Add it to on_tiles.")
    largest = tiles.largest_logit(term.scale)
    if isinstance(term, Softplus):
        bias = float(term.bias.max()) if term.bias.is_cpu else torch.inf
        return _Softpluses(term, tiles, largest + bias <= OVERFLOW_LIMIT[tiles.x.dtype])
    bounded = largest <= LOGIT_LIMIT[tiles.x.dtype]
    if bounded and term.scale.shape == (1, 1) and not term.mean:
        return _BoundedExponentials(term.scale.item(), tiles)
    return _Exponentials(term, tiles, bounded)


class _BoundedExponentials(OnTiles):
    """Log-sum-exps of bounded logits at one scale, applied in the matrix product: rows and columns share the exponentials."""

    scale_from_products = True

    def __init__(self, scale: float, tiles: Tiles) -> None:
        super().__init__(tiles)
        self.chain, self.factor = scale, scale * LOG2_E

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        self._add(self.tiles.exclude(tile.exp2_(), i, j, 0), i, j)

    def sums(self) -> Sides:
        return self._each(Tensor.log_, self.totals)

    def begin(self, sums: Sides, means: Tensor, grads: Sides, needs_scale: bool) -> None:
        self.weights = self._each(over_sum, grads, sums)

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        return self._weighted(tile if added else self.tiles.exclude(tile.exp2_(), i, j, 0), i, j)

    def grad_scale(self, x: Tensor, keys: Tensor) -> Tensor:
        return super().grad_scale(x, keys).reshape(1, 1)


def over_sum(grad: Tensor, logsumexp: Tensor) -> Tensor:
    """Gradient of a log-sum-exp divided by its sum of exponentials; 0 for a row without keys."""
    return logsumexp.neg().exp_().mul_(grad).masked_fill_(logsumexp == -torch.inf, 0)


class _Exponentials(OnTiles):
    """Log-sum-exps of logits of any size, at several scales or one per row, and optionally mean similarities.

    Logits are in base 2. Unless they are bounded, exponentials are relative to the running maximum of their row or column.
    """

    def __init__(self, term: LogSumExp, tiles: Tiles, bounded: bool) -> None:
        self.per_row = term.scale.shape[1] > 1
        self.scale = term.scale.to(tiles.x) if self.per_row else written_beside(term.scale, tiles.x)
        super().__init__(tiles, len(self.scale))
        self.weighted = tiles.zeros(1) if term.mean else None
        self.bounded, self.largest = bounded, self._each(lambda zeros: torch.full_like(zeros, -torch.inf), self.totals)

    def _scale_of(self, k: int, side: slice) -> Tensor:
        return self.scale[k, side] if self.per_row else self.scale[k]

    def _exponentials(
        self, tile: Tensor, i: slice, j: slice, shift: Callable[[Tensor, int, int, slice], Tensor]
    ) -> Iterator[tuple[int, int, slice, Tensor]]:
        """Scale number, axis, side and exponentials, for each scale and side; both sides share equal exponentials."""
        e = self.tiles.scratch(2, *tile.shape)
        for k, (axis, side) in product(range(len(self.scale)), self.tiles.sides(i, j)):
            if axis or self.per_row or not self.bounded:
                torch.mul(tile, (self._scale_of(k, side) * LOG2_E).unsqueeze(axis), out=e)
                self.tiles.exclude(e, i, j, -torch.inf)
                if not self.bounded:
                    e.sub_(shift(e, k, axis, side).unsqueeze(axis))
                e.exp2_()
            yield k, axis, side, e

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        for k, axis, side, e in self._exponentials(tile, i, j, self._new_largest):
            self.totals[axis][k, side] += e.sum(axis)
            if self.weighted is not None:
                self.weighted[axis][k, side] += e.mul_(tile).sum(axis)

    def _new_largest(self, logits: Tensor, k: int, axis: int, side: slice) -> Tensor:
        """Update the running maxima and rescale the sums; the new maxima, or 0 if all pairs so far are excluded."""
        before = self.largest[axis][k, side]
        largest = torch.maximum(before, logits.amax(axis))
        shift = largest.masked_fill(largest == -torch.inf, 0)
        for totals in (self.totals, self.weighted):
            if totals is not None:
                totals[axis][k, side] *= (before - shift).exp2()
        before.copy_(largest)
        return shift

    def sums(self) -> Sides:
        if self.bounded:
            return self._each(Tensor.log, self.totals)
        return self._each(lambda total, largest: total.log() + largest / LOG2_E, self.totals, self.largest)

    def means(self) -> Tensor:
        total = self.totals[1]
        return super().means() if self.weighted is None else self.weighted[1] / total.masked_fill(total == 0, 1)

    def begin(self, sums: Sides, means: Tensor, grads: Sides, needs_scale: bool) -> None:
        if self.weighted is not None:  # means are the derivatives with respect to the scales
            self.totals[1].copy_(grads[1] * means)
        self.needs_scale = needs_scale and self.weighted is None
        if self.bounded:
            self.weights = self._each(over_sum, grads, sums)
        else:
            self.weights = self._each(lambda grad, sums: grad.masked_fill(sums == -torch.inf, 0), grads, sums)
            self._shifts = self._each(lambda sums: (sums * LOG2_E).masked_fill_(sums == -torch.inf, torch.inf), sums)

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        if self.bounded and not self.per_row and self.tiles.columns:
            return self._shared_slopes(tile, i, j)
        total = self.tiles.scratch(1, *tile.shape).zero_()
        for k, axis, side, e in self._exponentials(tile, i, j, lambda _, k, axis, side: self._shifts[axis][k, side]):
            weights = self.weights[axis][k, side]
            total.addcmul_(e, (self._scale_of(k, side) * weights).unsqueeze(axis))
            if self.needs_scale:
                products = torch.mul(e, tile, out=self.tiles.scratch(3, *tile.shape))
                self.totals[axis][k, side] += products.sum(axis).mul_(weights)
        return self._mirror(total, i, j)

    def _shared_slopes(self, tile: Tensor, i: slice, j: slice) -> Tensor:
        """Slopes where both sides share exponentials of bounded logits, which need no shift.

        With the weights of both sides a diagonal tile needs no transpose.
        """
        (columns, rows), total = self.weights, self.tiles.scratch(1, *tile.shape)
        for k, axis, side, e in self._exponentials(tile, i, j, self._new_largest):
            both = self.tiles.scratch(3, *tile.shape)
            if self.needs_scale:
                self.totals[axis][k, side] += torch.mul(e, tile, out=both).sum(axis).mul_(self.weights[axis][k, side])
            if axis:
                torch.add(rows[k, i, None], columns[k, None, j], out=both).mul_(e)
                total = total.addcmul_(both, self.scale[k]) if k else torch.mul(both, self.scale[k], out=total)
        return total

    def grad_scale(self, x: Tensor, keys: Tensor) -> Tensor:
        columns, rows = self.totals
        each = (rows,) if self.tiles.symmetric else (rows, columns)
        return rows if self.per_row else torch.cat(each, 1).sum(1, keepdim=True)


class _Softpluses(OnTiles):
    """Sums of softplus. A finished tile holds logits or, if they are bounded, their exponentials."""

    scale_from_products = True

    def __init__(self, term: Softplus, tiles: Tiles, bounded: bool) -> None:
        super().__init__(tiles)
        self.bounded, self.chain = bounded, written_beside(term.scale, tiles.x)
        base = LOG2_E if bounded else 1.0
        # A scale on the host is applied in the matrix product at no cost; reading one on an accelerator would synchronise.
        self.factor = term.scale.item() * base if term.scale.is_cpu else 1.0
        self._scale, self._bias = None if term.scale.is_cpu else self.chain * base, term.bias * base

    def _sides(self, tile: Tensor, i: slice, j: slice) -> list[tuple[int, slice, Tensor]]:
        """Axes and sides of a tile, with the buffer of the tile that is finished for each side."""
        places = tile, self.tiles.scratch(2, *tile.shape)
        return [(axis, side, place) for (axis, side), place in zip(self.tiles.sides(i, j), places, strict=False)]

    def _finish(self, tile: Tensor, i: slice, j: slice) -> None:
        """Finish a tile for its columns, if they have sums, in a buffer, and then for its rows, in place."""
        for axis, side, out in reversed(self._sides(tile, i, j)):
            bias = self._bias[side].unsqueeze(axis)
            logits = torch.add(tile, bias, out=out) if self._scale is None else torch.addcmul(bias, tile, self._scale, out=out)
            self.tiles.exclude(logits.exp2_() if self.bounded else logits, i, j, 0 if self.bounded else -torch.inf)

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        self._finish(tile, i, j)
        for axis, side, z in self._sides(tile, i, j):
            self.totals[axis][0, side] += self._values(z).sum(axis)

    def _values(self, z: Tensor) -> Tensor:
        """Softpluses of a finished tile. PyTorch's log1p and softplus of float32 take ten times as long on a CPU."""
        total, error, e = (self.tiles.scratch(number, *z.shape) for number in (1, 3, 4))
        if self.bounded:
            e = z
        else:
            torch.abs(z, out=e).neg_().exp_()
        torch.add(e, 1, out=total)
        # The rounding error of the sum, to first order.
        torch.sub(e, torch.sub(total, 1, out=error), out=error).div_(total)
        values = total.log_().add_(error)
        return values if self.bounded else values.add_(torch.clamp(z, min=0, out=error))

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        if not added:
            self._finish(tile, i, j)
        total = self.tiles.scratch(1, *tile.shape)
        for axis, side, z in self._sides(tile, i, j):
            out = total if axis else self.tiles.scratch(3, *tile.shape)
            slopes = torch.div(z, torch.add(z, 1, out=out), out=out) if self.bounded else torch.sigmoid(z, out=out)
            slopes.mul_(self.weights[axis][0, side].unsqueeze(axis))
            self.totals[axis][0, side] += slopes.sum(axis)
            if not axis:
                total.add_(slopes)
        return self._mirror(total, i, j)


class _Kernels(OnTiles):
    """Sums of a kernel of squared distances."""

    factor, chain = -2.0, -2.0

    def __init__(self, term: KernelSum, tiles: Tiles, norms: Tensor | None) -> None:
        super().__init__(tiles)
        self.term, self.kernel, self.norms = term, get_kernel(term.kernel), norms

    def _distances(self, tile: Tensor, i: slice, j: slice) -> tuple[Tensor, Tensor | float]:
        """Squared distances, in place, with the rounding error of inner products; and their floor."""
        squared: Tensor | float = 1.0
        if self.norms is not None:
            out = self.tiles.scratch(1, *tile.shape)
            squared = torch.add(self.norms[i, None], self.norms[None, j], out=out).div_(2)
        return tile.add_(squared, alpha=2), distance_floor(self.term.kernel, self.tiles.x, self.term.rounding, squared)

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        distances, floor = self._distances(tile, i, j)
        values = self.kernel.value(distances.clamp_(min=floor), self.term.parameter)
        self._add(self.tiles.exclude(values, i, j, 0), i, j)

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        distances, floor = self._distances(tile, i, j)
        below = distances < floor
        derivative = self.kernel.derivative(distances.clamp_(min=floor), self.term.parameter)
        slopes = self.tiles.exclude(self._weighted(derivative, i, j).masked_fill_(below, 0), i, j, 0)
        if self.norms is not None:
            self._add(slopes, i, j)
        return slopes


class _Squares(OnTiles):
    """Sums of squares."""

    chain = 2.0

    def add(self, tile: Tensor, i: slice, j: slice) -> None:
        self._add(self.tiles.exclude(tile.square_(), i, j, 0), i, j)

    def slopes(self, tile: Tensor, i: slice, j: slice, *, added: bool) -> Tensor:
        return self._weighted(self.tiles.exclude(tile, i, j, 0), i, j)
