"""The loop over tiles: it knows rows, keys and gradients, and no function of a similarity.

Shapes: G sets of N rows `x`, M rows `keys`, D features, K scales.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.operators import without_autocast
from contrastive_zoo.pairwise import scratch
from contrastive_zoo.pairwise.sweep import Gradients, KernelSum, LogSumExp, Softplus, Sums, Sweep, Term
from contrastive_zoo.pairwise.tiled.terms import OnTiles, Upstream, on_tiles
from contrastive_zoo.pairwise.tiled.tiles import Tiles, tiles_numel

# Sweeps whose tiles fit into this many bytes keep them for the backward pass instead of computing them again.
KEEP_BYTES = 16 * 2**20


def residual(sweep: Sweep, term: Term) -> int:
    """Entries that the forward pass keeps for the backward pass: all tiles, or the gradient itself."""
    sets, rows, width = sweep.x.shape
    if isinstance(term, Softplus):
        keys = 0 if sweep.keys is None else sweep.keys.numel()
        return rows * width + keys + 1 + rows if term.uniform else 0
    numel = sets * tiles_numel(sweep)
    keeps = isinstance(term, LogSumExp) and not term.mean and numel * sweep.x.element_size() <= KEEP_BYTES
    return numel if keeps else 0


def forward(sweep: Sweep, term: Term, keep: int) -> tuple[Sums, Tensor]:
    """The sums, and ``keep`` entries for the backward pass."""
    if isinstance(term, Softplus) and keep:
        return _forward_with_gradient(sweep, term)
    sets = sweep.x.shape[0]
    kept = scratch.empty(sweep.x, sets, keep // sets)
    found = []
    with without_autocast(sweep.x):
        for number in range(sets):
            tiles = Tiles(sweep, number)
            on = on_tiles(term, sweep, tiles, number)
            for i, j, room in _rooms(tiles, kept[number]):
                on.add(tiles.products(i, j, on.factor, room), i, j)
            found.append(on.sums())
    rows, means = (torch.stack(each, 1) for each in zip(*((sums.rows, sums.means) for sums in found), strict=True))
    return Sums(rows, found[0].columns, means), kept.view(-1)


def backward(
    sweep: Sweep, term: Term, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: tuple[bool, bool, bool, bool]
) -> Gradients:
    """Gradients of rows, keys, scale and offset, as far as they are needed, given those of the sums of rows and keys."""
    if isinstance(term, Softplus) and kept.numel():
        return _kept_gradient(sweep, term, upstream[0], kept)
    gradients = []
    with without_autocast(sweep.x):
        for number, tiles_kept in enumerate(kept.chunk(sweep.x.shape[0]) if kept.numel() else [kept] * sweep.x.shape[0]):
            tiles = Tiles(sweep, number)
            on = on_tiles(term, sweep, tiles, number)
            on.begin(_upstream_of(sums, upstream, number, tiles, needs[2]))
            gradient = _Gradient(tiles, needs[0] or needs[2], needs[1])
            for i, j, room in _rooms(tiles, tiles_kept):
                tile = tiles.products(i, j, on.factor) if room is None else room
                gradient.spread(i, j, on.slopes(tile, i, j, added=room is not None))
            gradients.append(gradient.finished(on))
    return _together(gradients, term)


def _forward_with_gradient(sweep: Sweep, term: Softplus) -> tuple[Sums, Tensor]:
    """One sweep for both passes, where the upstream gradient is known but for a factor."""
    with without_autocast(sweep.x):
        tiles = Tiles(sweep)
        on = on_tiles(term, sweep, tiles, 0)
        ones, empty = sweep.x.new_ones(1, sweep.x.shape[1]), sweep.x.new_empty(1, 0)
        on.begin(Upstream(Sums(empty, empty, empty), ones, ones, True))
        gradient = _Gradient(tiles, True, True)
        for i, j in tiles:
            tile = tiles.products(i, j, on.factor)
            on.add(tile, i, j)
            gradient.spread(i, j, on.slopes(tile, i, j, added=True))
        sums, gradients = on.sums(), gradient.finished(on)
    kept = torch.cat([each.flatten() for each in gradients])
    return Sums(sums.rows[:, None], sums.columns, sums.means[:, None]), kept


def _kept_gradient(sweep: Sweep, term: Softplus, grad: Tensor, kept: Tensor) -> Gradients:
    keys = 0 if sweep.keys is None else sweep.keys.numel()
    factor, parts = _uniform(grad.flatten()), kept.split([sweep.x.numel(), keys, 1, sweep.x.shape[1]])
    x, of_keys, scale, bias = (part * factor for part in parts)
    shape = (0,) if sweep.keys is None else sweep.keys.shape
    return Gradients(x.view(sweep.x.shape), of_keys.view(shape), scale.reshape(()), bias)


def _uniform(grad: Tensor) -> Tensor:
    """The one value of an upstream gradient that was promised to be the same for all rows; otherwise NaN on accelerators."""
    same = ((grad == grad[0]) | grad.isnan()).all()
    if grad.is_cpu and not same:
        raise RuntimeError(
            "the upstream gradient differs between rows although softplus_sum was called with uniform=True. Call it without."
        )
    return torch.where(same, grad[0], torch.nan)


def _rooms(tiles: Tiles, kept: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """The tiles, and the place of each among the kept ones, if there are any."""
    offset = 0
    for i, j in tiles:
        if not kept.numel():
            yield i, j, None
            continue
        height, width = i.stop - i.start, j.stop - j.start
        yield i, j, kept[offset : offset + height * width].view(height, width)
        offset += height * width


def _upstream_of(sums: Sums, upstream: tuple[Tensor, Tensor], number: int, tiles: Tiles, needs_scale: bool) -> Upstream:
    """What concerns one set of rows."""
    rows, grad_rows = sums.rows[:, number], upstream[0][:, number]
    columns, grad_columns = (rows, grad_rows) if tiles.symmetric else (sums.columns, upstream[1])
    return Upstream(Sums(rows, columns, sums.means[:, number]), grad_rows, grad_columns, needs_scale)


class _Gradient:
    """Gradient of one set of rows and of its keys, added up tile by tile; a side that needs none costs no products."""

    def __init__(self, tiles: Tiles, needs_x: bool, needs_keys: bool) -> None:
        self.tiles = tiles
        self.x = tiles.x.new_zeros(tiles.x.shape) if needs_x or tiles.symmetric else None
        self.keys = self.x if tiles.symmetric else tiles.keys.new_zeros(tiles.keys.shape) if needs_keys else None

    def spread(self, i: slice, j: slice, slopes: Tensor) -> None:
        """Add a tile of derivatives in the similarities."""
        if self.x is not None:
            self.x[i].addmm_(slopes, self.tiles.keys[j])
        if self.keys is not None and (not self.tiles.symmetric or self.tiles.mirrored(i, j)):
            self.keys[j].addmm_(slopes.T, self.tiles.x[i])

    def finished(self, on: OnTiles) -> Gradients:
        """The gradient of everything that the sums depend on."""
        empty = self.tiles.x.new_empty(0)
        scale, offset = on.gradients(empty if self.x is None else self.x)
        chain, keys = on.chain(), empty if self.tiles.symmetric or self.keys is None else self.keys
        if not isinstance(chain, float) or chain != 1.0:
            for each in (self.x, keys):
                if each is not None:
                    each.mul_(chain)
        return Gradients(*(empty if each is None else each for each in (self.x, keys, scale, offset)))


def _together(gradients: list[Gradients], term: Term) -> Gradients:
    """Of all sets: rows and squared norms by set, the scale for all."""
    x, keys, scale, offset = zip(*gradients, strict=True)
    by_set = torch.stack(offset) if isinstance(term, KernelSum) else offset[0]
    return Gradients(torch.stack(x), keys[0], sum(scale[1:], scale[0]), by_set)
