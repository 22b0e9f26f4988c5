"""The loop over tiles: handles rows, keys and gradients; terms handle functions of similarities.

Shapes: G sets of N rows `x`, M rows `keys`, D features, K scales.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Softplus, Sums, Term
from contrastive_zoo.pairwise.tiled import gram
from contrastive_zoo.pairwise.tiled.on_tiles import OnTiles
from contrastive_zoo.pairwise.tiled.terms import on_tiles
from contrastive_zoo.pairwise.tiled.tiles import Sides, Tiles, tiles_numel, view_of

# If all tiles of a sweep fit into this many bytes, they are kept for the backward pass instead of being recomputed.
KEEP_BYTES = 16 * 2**20


def residual(sweep: Sweep, term: Term, needs: Needs) -> int:
    """Number of entries that the forward pass keeps for the backward pass: all tiles, or the gradient itself."""
    if not any(needs):
        return 0
    if isinstance(term, Softplus):
        return sum(_numels(sweep, needs)) if term.uniform else 0
    numel = tiles_numel(sweep) * (sweep.x.shape[0] if sweep.x.dim() == 3 else 1)
    keeps = isinstance(term, LogSumExp) and numel * sweep.x.element_size() <= KEEP_BYTES
    return numel if keeps else 0


def forward(sweep: Sweep, term: Term, needs: Needs) -> tuple[Sums, Tensor]:
    """The sums, and the entries kept for the backward pass."""
    if gram.serves(sweep, term):
        return gram.forward(sweep)
    keep = residual(sweep, term, needs)
    if isinstance(term, Softplus) and keep:
        return _forward_with_gradient(sweep, term, needs)
    kept, by_set = sweep.x.new_empty(keep), []
    for on, places in _sets(sweep, term, kept):
        for i, j, place in places:
            on.add(on.tiles.products(i, j, on.factor, place), i, j)
        by_set.append(_sums(on))
    if sweep.x.dim() == 2:
        return by_set[0], kept
    rows, _, means = zip(*by_set, strict=True)
    return Sums(torch.stack(rows, 1), by_set[0].columns, torch.stack(means, 1)), kept


def backward(sweep: Sweep, term: Term, sums: Sums, upstream: Sides, kept: Tensor, needs: Needs) -> Gradients:
    """The needed gradients of rows, keys, scale and offset, given upstream gradients of the sums of rows and of keys."""
    if gram.serves(sweep, term):
        return gram.backward(sweep, upstream, needs)
    if isinstance(term, Softplus) and kept.numel():
        return _kept_gradient(sweep, upstream[0], kept, needs)
    sets, found = list(_sets(sweep, term, kept)), []
    # The gradient of the scale is computed from the gradient of the rows or of the keys.
    needs_x = needs[0] or (needs[2] and not needs[1] and sets[0][0].scale_from_products)
    x = sweep.x.new_zeros(sweep.x.shape if needs_x else 0)
    keys = x.new_zeros(sweep.keys.shape if sweep.keys is not None and needs[1] else 0)
    for number, (on, places) in enumerate(sets):
        rows, means, grads = [t[:, number] if sweep.x.dim() == 3 else t for t in (sums.rows, sums.means, upstream[0])]
        columns, grad_columns = (rows, grads) if on.tiles.symmetric else (sums.columns, upstream[1])
        on.begin((columns, rows), means, (grad_columns, grads), needs[2])
        grad_x = x[number] if x.dim() == 3 else x
        for i, j, place in places:
            tile = on.tiles.products(i, j, on.factor) if place is None else place
            _spread(on.slopes(tile, i, j, added=place is not None), on.tiles, i, j, grad_x, keys)
        found.append(_finished(on, grad_x, keys, needs[2]))
    scale, offset = zip(*found, strict=True)
    given = term.packed().offset
    offsets = torch.stack(offset) if given is not None and given.dim() == 2 else offset[0]
    return Gradients(x, keys, sum(scale[1:], scale[0]), offsets)


def _sets(sweep: Sweep, term: Term, kept: Tensor) -> Iterator[tuple[OnTiles, Iterator[tuple[slice, slice, Tensor | None]]]]:
    """For each set of rows, the term on its tiles, and the tiles with their storage."""
    sets = sweep.sets
    rooms = kept.chunk(len(sets)) if kept.numel() and len(sets) > 1 else [kept] * len(sets)
    for number, (x, room) in enumerate(zip(sets, rooms, strict=True)):
        tiles = Tiles(sweep, x)
        yield on_tiles(term, tiles, number), _places(tiles, room)


def _places(tiles: Tiles, kept: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """The tiles, each with its storage among the kept tiles, or None if tiles are not kept."""
    offset = 0
    for i, j in tiles:
        height, width = i.stop - i.start, j.stop - j.start
        place = slice(offset, offset + height * width)
        yield i, j, view_of(kept, place).view(height, width) if kept.numel() else None
        offset = place.stop


def _sums(on: OnTiles) -> Sums:
    (columns, rows), means = on.sums(), on.means()
    return Sums(rows, rows.new_empty(len(rows), 0) if on.tiles.symmetric else columns, means)


def _spread(slopes: Tensor, tiles: Tiles, i: slice, j: slice, x: Tensor, keys: Tensor) -> None:
    """Add a tile of slopes to the gradients of rows and keys. An empty gradient is not needed, so its product is skipped."""
    if x.numel():
        view_of(x, i).addmm_(slopes, view_of(tiles.keys, j))
    others = x if tiles.symmetric else keys
    if others.numel() and (tiles.mirrored(i, j) or not tiles.symmetric):
        view_of(others, j).addmm_(slopes.T, view_of(tiles.x, i))


def _finished(on: OnTiles, x: Tensor, keys: Tensor, needs_scale: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of scale and offset; multiply the gradients of rows and keys by `OnTiles.chain`, in place."""
    scale = on.grad_scale(x, keys) if needs_scale else x.new_empty(0)
    if not isinstance(on.chain, float) or on.chain != 1.0:
        for gradient in (x, keys):
            if gradient.numel():
                gradient.mul_(on.chain)
    return scale, on.totals[1][0]


def _forward_with_gradient(sweep: Sweep, term: Softplus, needs: Needs) -> tuple[Sums, Tensor]:
    """Sums and gradient from one pass over the pairs, for an upstream gradient that is known up to a factor."""
    kept = sweep.x.new_zeros(sum(_numels(sweep, needs)))
    x, keys, scale, bias = _split(kept, sweep, needs)
    tiles = Tiles(sweep, sweep.x)
    adding, on = (on_tiles(term, tiles) for _ in range(2))
    columns, rows = tiles.zeros(1)
    on.begin((columns, rows), x, (torch.ones_like(columns), torch.ones_like(rows)), needs[2])
    for i, j in tiles:
        tile = tiles.products(i, j, on.factor)
        adding.add(tile, i, j)
        _spread(on.slopes(tile, i, j, added=True), tiles, i, j, x, keys)
    for part, gradient in zip((scale, bias), _finished(on, x, keys, needs[2]), strict=True):
        part.copy_(gradient)
    return _sums(adding), kept


def _numels(sweep: Sweep, needs: Needs) -> tuple[int, int, int, int]:
    """Entries of the gradients of rows, keys, scale and bias; the scale's gradient needs the gradient of rows or keys."""
    keys = 0 if sweep.keys is None or not needs[1] else sweep.keys.numel()
    rows = sweep.x.numel() if needs[0] or (needs[2] and not keys) else 0
    return rows, keys, int(needs[2]), sweep.x.shape[0]


def _split(kept: Tensor, sweep: Sweep, needs: Needs) -> Gradients:
    """Gradients of rows, keys, scale and bias as views of one tensor; empty for an input that needs no gradient."""
    x, keys, scale, bias = kept.split(_numels(sweep, needs))
    return Gradients(
        x.view(sweep.x.shape) if x.numel() else x,
        keys if sweep.keys is None or not keys.numel() else keys.view(sweep.keys.shape),
        scale.view(()) if needs[2] else scale,
        bias,
    )


def _kept_gradient(sweep: Sweep, grad: Tensor, kept: Tensor, needs: Needs) -> Gradients:
    """The kept gradients times the upstream gradient that all rows must share; NaN on accelerators if the rows' differ."""
    first = grad[0, 0]
    same = ((grad == first) | grad.isnan()).all()
    if grad.is_cpu and not same:
        raise RuntimeError(
            "the upstream gradient differs between rows although softplus_sum was called with uniform=True. Call it without."
        )
    factor = torch.where(same, first, torch.nan)
    return Gradients(*(part * factor for part in _split(kept, sweep, needs)))
