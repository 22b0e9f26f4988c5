"""The loop over tiles: it knows rows, keys and gradients, and no function of a similarity.

Shapes: G sets of N rows `x`, M rows `keys`, D features, K scales.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.operators import without_autocast
from contrastive_zoo.pairwise import scratch
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, KernelSum, LogSumExp, Softplus, Sums, Term
from contrastive_zoo.pairwise.tiled.terms import OnTiles, Upstream, on_tiles
from contrastive_zoo.pairwise.tiled.tiles import Tiles, tiles_numel

# Sweeps whose tiles fit into this many bytes keep them for the backward pass instead of computing them again.
KEEP_BYTES = 16 * 2**20


def residual(sweep: Sweep, term: Term) -> int:
    """Entries that the forward pass keeps for the backward pass: all tiles, or the gradient itself."""
    if isinstance(term, Softplus):
        keys = 0 if sweep.keys is None else sweep.keys.numel()
        return sweep.x.numel() + keys + 1 + sweep.x.shape[0] if term.uniform else 0
    numel = tiles_numel(sweep) * (sweep.x.shape[0] if sweep.x.dim() == 3 else 1)
    keeps = isinstance(term, LogSumExp) and not term.mean and numel * sweep.x.element_size() <= KEEP_BYTES
    return numel if keeps else 0


def forward(sweep: Sweep, term: Term, keep: int) -> tuple[Sums, Tensor]:
    """The sums, and ``keep`` entries for the backward pass."""
    if isinstance(term, Softplus) and keep:
        return _forward_with_gradient(sweep, term)
    sets = sweep.sets
    kept = scratch.empty(sweep.x, keep)
    found, tiles = [], Tiles(sweep, sets[0])
    with without_autocast(sweep.x):
        for number, (x, room) in enumerate(zip(sets, kept.chunk(len(sets)) if keep else [kept] * len(sets), strict=True)):
            tiles = tiles.of(x)
            on = on_tiles(term, sweep, tiles, number)
            on.start()
            for i, j, place in _places(tiles, room):
                on.add(tiles.products(i, j, on.factor, place), i, j)
            found.append(on.sums())
    if sweep.x.dim() == 2:
        return found[0], kept
    rows, means = (torch.stack(each, 1) for each in zip(*((sums.rows, sums.means) for sums in found), strict=True))
    return Sums(rows, found[0].columns, means), kept


def backward(
    sweep: Sweep, term: Term, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: tuple[bool, bool, bool, bool]
) -> Gradients:
    """Gradients of rows, keys, scale and offset, as far as they are needed, given those of the sums of rows and keys."""
    if isinstance(term, Softplus) and kept.numel():
        return _kept_gradient(sweep, upstream[0], kept)
    sets = sweep.sets
    grad_x = sweep.x.new_zeros(sweep.x.shape) if needs[0] or needs[2] or sweep.keys is None else sweep.x.new_empty(0)
    grad_sets = grad_x.unbind() if grad_x.dim() == 3 else (grad_x,)
    found, tiles = [], Tiles(sweep, sets[0])
    with without_autocast(sweep.x):
        for number, (x, grad, room) in enumerate(
            zip(sets, grad_sets, kept.chunk(len(sets)) if kept.numel() else [kept] * len(sets), strict=True)
        ):
            tiles = tiles.of(x)
            on = on_tiles(term, sweep, tiles, number)
            on.begin(_upstream_of(sums, upstream, number, tiles, needs[2]))
            keys = tiles.keys.new_zeros(tiles.keys.shape if needs[1] and not tiles.symmetric else 0)
            gradient = _Gradient(tiles, grad, keys)
            for i, j, place in _places(tiles, room):
                tile = tiles.products(i, j, on.factor) if place is None else place
                gradient.spread(i, j, on.slopes(tile, i, j, added=place is not None))
            found.append(gradient.finished(on))
    scale, offset = zip(*found, strict=True)
    by_set = torch.stack(offset) if isinstance(term, KernelSum) and sweep.x.dim() == 3 else offset[0]
    return Gradients(grad_x, keys, scale[0] if len(sets) == 1 else sum(scale[1:], scale[0]), by_set)


def _forward_with_gradient(sweep: Sweep, term: Softplus) -> tuple[Sums, Tensor]:
    """One sweep for both passes, where the upstream gradient is known but for a factor."""
    with without_autocast(sweep.x):
        tiles = Tiles(sweep, sweep.x)
        on = on_tiles(term, sweep, tiles, 0)
        ones, empty = sweep.x.new_ones(1, sweep.x.shape[0]), sweep.x.new_empty(1, 0)
        on.start()
        on.begin(Upstream(Sums(empty, empty, empty), ones, ones, True))
        kept = sweep.x.new_zeros(residual(sweep, term))
        of_x, of_keys, of_scale, of_bias = _split(kept, sweep)
        gradient = _Gradient(tiles, of_x, of_keys)
        for i, j in tiles:
            tile = tiles.products(i, j, on.factor)
            on.add(tile, i, j)
            gradient.spread(i, j, on.slopes(tile, i, j, added=True))
        sums, (scale, bias) = on.sums(), gradient.finished(on)
        of_scale.copy_(scale)
        of_bias.copy_(bias)
    return sums, kept


def _split(kept: Tensor, sweep: Sweep) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of rows, keys, scale and bias as parts of one tensor."""
    keys = (0,) if sweep.keys is None else sweep.keys.shape
    parts = kept.split([sweep.x.numel(), math.prod(keys), 1, sweep.x.shape[0]])
    return parts[0].view(sweep.x.shape), parts[1].view(keys), parts[2].view(()), parts[3]


def _kept_gradient(sweep: Sweep, grad: Tensor, kept: Tensor) -> Gradients:
    factor = _uniform(grad.flatten())
    return Gradients(*(part * factor for part in _split(kept, sweep)))


def _uniform(grad: Tensor) -> Tensor:
    """The one value of an upstream gradient that was promised to be the same for all rows; otherwise NaN on accelerators."""
    same = ((grad == grad[0]) | grad.isnan()).all()
    if grad.is_cpu and not same:
        raise RuntimeError(
            "the upstream gradient differs between rows although softplus_sum was called with uniform=True. Call it without."
        )
    return torch.where(same, grad[0], torch.nan)


def _places(tiles: Tiles, kept: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """The tiles, and the place of each among the kept ones, if there are any."""
    if not kept.numel():
        for i, j in tiles:
            yield i, j, None
        return
    offset = 0
    for i, j in tiles:
        height, width = i.stop - i.start, j.stop - j.start
        yield i, j, kept[offset : offset + height * width].view(height, width)
        offset += height * width


def _upstream_of(sums: Sums, upstream: tuple[Tensor, Tensor], number: int, tiles: Tiles, needs_scale: bool) -> Upstream:
    """What concerns one set of rows."""
    rows, means, grad_rows = sums.rows, sums.means, upstream[0]
    if rows.dim() == 3:
        rows, means, grad_rows = rows[:, number], means[:, number], grad_rows[:, number]
    columns, grad_columns = (rows, grad_rows) if tiles.symmetric else (sums.columns, upstream[1])
    return Upstream(Sums(rows, columns, means), grad_rows, grad_columns, needs_scale)


class _Gradient:
    """Gradient of one set of rows and of its keys, added up tile by tile; a side that needs none costs no products.

    Args:
        tiles: The tiles.
        x: Zeros in the shape of the rows, or empty if they need no gradient.
        keys: The same for the keys; empty where rows are their own keys.
    """

    def __init__(self, tiles: Tiles, x: Tensor, keys: Tensor) -> None:
        self.tiles, self.x, self.keys = tiles, x, x if tiles.symmetric else keys

    def spread(self, i: slice, j: slice, slopes: Tensor) -> None:
        """Add a tile of derivatives in the similarities."""
        if self.x.numel():
            self.x[i].addmm_(slopes, self.tiles.keys[j])
        if self.keys.numel() and (not self.tiles.symmetric or self.tiles.mirrored(i, j)):
            self.keys[j].addmm_(slopes.T, self.tiles.x[i])

    def finished(self, on: OnTiles) -> tuple[Tensor, Tensor]:
        """Complete the gradients of rows and keys; those of scale and offset, empty where there is none."""
        scale, offset = on.gradients(self.x)
        chain = on.chain()
        if not isinstance(chain, float) or chain != 1.0:
            self.x.mul_(chain)
            if not self.tiles.symmetric:
                self.keys.mul_(chain)
        empty = self.x.new_empty
        return empty(0) if scale is None else scale, empty(0) if offset is None else offset
