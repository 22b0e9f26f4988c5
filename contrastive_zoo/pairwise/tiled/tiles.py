"""The tiles of one similarity matrix: their order, which pairs do not count, and buffers that are used again.

Shapes: N rows of `x`, M rows of `keys`, D features, K scales.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.pairwise.sweep import Sweep

# On a CPU a float32 tile and one buffer beside it (1 MiB each) stay in the cache of two cores. A matrix of few tiles takes less
# time as a single one, unless that forgoes its symmetry. Accelerators want more work per launch.
TILE_CPU = 512
SINGLE_TILE_CPU = 1024
TILE_ACCELERATOR = 4096

# Strips of rows that processes share begin at multiples of this.
GRAIN = 32

# Something of columns and of rows, (K, M) and (K, N), in the order of the axes of a tile along which they are summed.
Sides = tuple[Tensor, Tensor]


class _Buffers(threading.local):
    """Buffers by number and dtype, of each thread: freed after every sweep, their pages would be mapped again in the next."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, torch.dtype], Tensor] = {}


_on_host = _Buffers()


def tile_size(rows: int, columns: int, device: torch.device, symmetric: bool) -> int:
    """Rows and columns of a tile."""
    on_host = SINGLE_TILE_CPU if max(rows, columns) <= SINGLE_TILE_CPU and not symmetric else TILE_CPU
    return on_host if device.type == "cpu" else TILE_ACCELERATOR


def tiles_numel(sweep: Sweep) -> int:
    """Entries of all the tiles of one set of rows, those of other parts included."""
    rows = sweep.x.shape[-2]
    if sweep.keys is not None:
        return rows * sweep.keys.shape[0]
    size = tile_size(rows, rows, sweep.x.device, True)
    strips, rest = rows // size, rows % size
    return size * (strips * rows - size * (strips * (strips - 1) // 2)) + rest * rest


def strips(rows: int, part: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First and last rows of the strips of a part.

    Of 2P strips, P being the number of parts, part p takes the p-th and the p-th from the end: in a symmetric sweep, whose
    strips grow shorter, all such pairs are the same work.
    """
    number, parts = part
    if parts == 1:
        yield 0, rows
        return
    height = -(-rows // (2 * parts * GRAIN)) * GRAIN
    for strip in (number, 2 * parts - 1 - number):
        start, stop = min(strip * height, rows), min((strip + 1) * height, rows)
        if start < stop:
            yield start, stop


def view_of(rows: Tensor, side: slice) -> Tensor:
    """Some rows; all of them without the cost of a view."""
    return rows if side.stop - side.start == rows.shape[0] else rows[side]


class Tiles:
    """Visits ``x @ keys.T`` of one set of rows tile by tile; without keys the symmetric ``x @ x.T``, each pair of tiles once.

    Where ids are on the host, tiles whose ranges of ids do not meet need no mask; ids that increase along the rows make that
    nearly all tiles. Where pairs with equal ids count, rows come sorted by id and fall into blocks that share no id: one large
    class, or several small ones. Only pairs within a block are visited then. Of ids on an accelerator nothing is known.

    Args:
        sweep: The sweep.
        x: (N, D) one of its sets of rows.
    """

    def __init__(self, sweep: Sweep, x: Tensor) -> None:
        self.x, self.keys, self.symmetric = x, x if sweep.keys is None else sweep.keys, sweep.keys is None
        self.columns = sweep.both or self.symmetric
        self.size = tile_size(x.shape[0], self.keys.shape[0], x.device, self.symmetric)
        self._norm_bound, self._part, self._equal = sweep.norm_bound, sweep.part, sweep.counts == "equal"
        ids, key_ids, group = sweep.ids, sweep.key_ids, sweep.group
        if self.symmetric and ids is None:
            ids, group = torch.arange(x.shape[0], device="cpu"), 1
        if self.symmetric:
            key_ids = ids
        self._ids = None if ids is None or key_ids is None else (ids, key_ids)
        self._known = self._ids is None or (self._ids[0].is_cpu and self._ids[1].is_cpu)
        self._group = self._group_size(group) if x.is_cpu and self._known and not self._equal else 0
        self._blocks = self._class_blocks() if self._equal and self._known else [(0, x.shape[0])]
        self._buffers = _on_host.found if x.is_cpu else {}  # the allocator of an accelerator keeps its memory

    def _group_size(self, known: int) -> int:
        """How often each id comes if rows and keys have ids 0, 0, ..., 1, 1, ... as batches do; else 0."""
        if self._ids is None:
            return 0
        rows = self.x.shape[0]
        group = known or rows // max(int(self._ids[0][-1]) + 1, 1)
        if group == 0 or self.size % group or GRAIN % group or rows % group:
            return 0
        regular = None if known else torch.arange(rows, device="cpu") // group
        return group if regular is None or all(torch.equal(each, regular) for each in self._ids) else 0

    def _class_blocks(self) -> list[tuple[int, int]]:
        """First and last row of each block of classes; small classes share one of at most a quarter of a tile."""
        assert self._ids is not None
        blocks, start, stop = [], 0, 0
        for count in torch.unique_consecutive(self._ids[0], return_counts=True)[1].tolist():
            if start < stop and stop + count - start > self.size // 4:
                blocks.append((start, stop))
                start = stop
            stop += count
        return [*blocks, (start, stop)]

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = self.x.shape[0], self.keys.shape[0]
        if max(rows, columns) <= self.size and self._part[1] == 1 and len(self._blocks) == 1:
            return iter([(slice(0, rows), slice(0, columns))])  # a small matrix, where every call counts
        return self._all_tiles()

    def _all_tiles(self) -> Iterator[tuple[slice, slice]]:
        for low, high in strips(self.x.shape[0], self._part):
            for start, stop in self._blocks:
                yield from self._tiles_of(max(low, start), min(high, stop), stop)

    def _tiles_of(self, low: int, high: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Tiles of the rows from ``low`` to ``high``, in a block that ends at ``stop``."""
        size, columns = self.size, stop if self.symmetric else self.keys.shape[0]
        for row in range(low, high, size):
            rows = slice(row, min(row + size, high))
            if self.symmetric:
                yield rows, rows
            for column in range(rows.stop if self.symmetric else 0, columns, size):
                yield rows, slice(column, min(column + size, columns))

    def mirrored(self, rows: slice, columns: slice) -> bool:
        """Whether a tile also stands for its transpose, which is not visited."""
        return self.symmetric and rows.start != columns.start

    def sides(self, rows: slice, columns: slice) -> tuple[tuple[int, slice], ...]:
        """The sides whose sums a tile adds to, each with the axis of the tile to sum along."""
        two_sided = self.mirrored(rows, columns) if self.symmetric else self.columns
        return ((1, rows), (0, columns)) if two_sided else ((1, rows),)

    def zeros(self, scales: int) -> Sides:
        """Zeros for the columns and the rows: the same tensor in a symmetric sweep; (K, 0) for columns without sums."""
        rows = self.x.new_zeros(scales, self.x.shape[0])
        return rows if self.symmetric else self.x.new_zeros(scales, self.keys.shape[0] if self.columns else 0), rows

    def largest_logit(self, scale: Tensor) -> float:
        """A bound on scale times |similarity|; infinite where the host cannot know one without waiting for an accelerator."""
        known = self._norm_bound < torch.inf
        if not scale.is_cpu or not (known or self.x.is_cpu):
            return torch.inf
        lengths = (self._norm_bound,) * 2 if known else [float(rows.norm(dim=1).max()) for rows in (self.x, self.keys)]
        return (abs(scale.item()) if scale.numel() == 1 else float(scale.abs().max())) * lengths[0] * lengths[1]

    def exclude(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        """Overwrite, in a tile of values, the pairs that do not count."""
        if self._ids is None:
            return values
        if rows.start == columns.start and self._equal:
            values.fill_diagonal_(fill)
        if rows == columns and self._group:
            blocks = rows.stop // self._group - rows.start // self._group
            values.view(blocks, self._group, blocks, self._group).diagonal(dim1=0, dim2=2).fill_(fill)
            return values
        if self._all_count(rows, columns):
            return values
        ids, key_ids = self._ids[0][rows, None].to(values.device), self._ids[1][columns].to(values.device)
        return values.masked_fill_(ids != key_ids if self._equal else ids == key_ids, fill)

    def _all_count(self, rows: slice, columns: slice) -> bool:
        """Whether all pairs of a tile but its diagonal count, as far as the host knows."""
        if self._group:  # ids are positions over the size of a group
            return columns.stop <= rows.start or rows.stop <= columns.start
        if not self._known or self._ids is None:
            return False
        ids, key_ids = self._ids[0][rows], self._ids[1][columns]
        if self._equal:
            return bool(ids[0] == key_ids[-1])
        return bool(ids.min() > key_ids.max()) or bool(key_ids.min() > ids.max())

    def products(self, rows: slice, columns: slice, scale: float, out: Tensor | None = None) -> Tensor:
        """One tile of ``scale * x @ keys.T``, in a buffer or in the place given."""
        a, b = view_of(self.x, rows), view_of(self.keys, columns)
        out = self.scratch(0, a.shape[0], b.shape[0]) if out is None else out
        return torch.addmm(out, a, b.T, beta=0, alpha=scale, out=out)

    def scratch(self, number: int, height: int, width: int) -> Tensor:
        """A buffer for a tile; each ``number`` is one buffer, reused from tile to tile."""
        key = number, self.x.dtype
        if key not in self._buffers or self._buffers[key].numel() < height * width:
            room = min(self.size, self.x.shape[0]) * min(self.size, self.keys.shape[0])
            with torch.inference_mode(False):  # such a tensor could not be written to outside of that mode
                self._buffers[key] = torch.empty(max(room, height * width), dtype=self.x.dtype, device=self.x.device)
        return self._buffers[key][: height * width].view(height, width)
