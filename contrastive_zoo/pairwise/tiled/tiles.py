"""The tiles of one similarity matrix: their order, which pairs do not count, and buffers that are used again.

Shapes: N rows of `x`, M rows of `keys`, D features.
"""

import threading
from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from contrastive_zoo.pairwise.sweep import Sweep

# On a CPU a float32 tile and one buffer beside it (1 MiB each) stay in the cache of two cores; a matrix of few tiles is better
# off as a single one, unless that forgoes its symmetry. Accelerators want more work per launch.
TILE_CPU = 512
SINGLE_TILE_CPU = 1024
TILE_ACCELERATOR = 4096

# Strips of rows that processes share begin at multiples of this.
GRAIN = 32

# Scratch memory on the host stays with its thread: handed back after every sweep, it would be new again in the next.
_host_scratch = threading.local()


def tile_size(rows: int, columns: int, device: torch.device, symmetric: bool) -> int:
    """Rows and columns of a tile."""
    on_host = SINGLE_TILE_CPU if max(rows, columns) <= SINGLE_TILE_CPU and not symmetric else TILE_CPU
    return on_host if device.type == "cpu" else TILE_ACCELERATOR


def tiles_numel(sweep: Sweep) -> int:
    """Entries of all the tiles of one set of rows, of its other parts too."""
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
        start = min(strip * height, rows)
        stop = min(start + height, rows)
        if start < stop:
            yield start, stop


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
        self.x = x
        self.symmetric = sweep.keys is None
        self.keys = self.x if sweep.keys is None else sweep.keys
        self.columns = sweep.both or self.symmetric
        self.size = tile_size(self.x.shape[0], self.keys.shape[0], self.x.device, self.symmetric)
        self._part, self._equal = sweep.part, sweep.counts == "equal"
        ids, key_ids = sweep.ids, sweep.key_ids
        group = sweep.group
        if self.symmetric and ids is None:
            ids, group = torch.arange(self.x.shape[0]), 1
        if self.symmetric:
            key_ids = ids
        self.ids = ids if key_ids is not None else None
        self.key_ids = key_ids if ids is not None else None
        self._group = 0 if self._equal else self._group_size(group)
        self._blocks = self._class_blocks() if self._equal else [(0, self.x.shape[0])]
        self._scratch = _scratch_of(self.x.device)

    def of(self, x: Tensor) -> "Tiles":
        """The same tiles of another set of rows."""
        if x is self.x:
            return self
        others = copy(self)
        others.x = x
        others.keys = x if self.symmetric else self.keys
        return others

    def _group_size(self, known: int) -> int:
        """How often each id comes if rows and keys have ids 0, 0, ..., 1, 1, ... on the host, as batches do; else 0."""
        if self.ids is None or self.key_ids is None or not self.ids.is_cpu or not self.key_ids.is_cpu or not self.x.is_cpu:
            return 0
        rows = self.ids.shape[0]
        group = known or rows // max(int(self.ids[-1]) + 1, 1)
        if group == 0 or self.size % group or GRAIN % group or rows % group:
            return 0
        regular = None if known else torch.arange(rows) // group
        return group if regular is None or all(torch.equal(ids, regular) for ids in (self.ids, self.key_ids)) else 0

    def _class_blocks(self) -> list[tuple[int, int]]:
        """First and last row of each block of classes; small classes share one of at most a quarter of a tile."""
        if self.ids is None or not self.ids.is_cpu:
            return [(0, self.x.shape[0])]
        blocks, start, stop = [], 0, 0
        for count in torch.unique_consecutive(self.ids, return_counts=True)[1].tolist():
            if start < stop and stop + count - start > self.size // 4:
                blocks.append((start, stop))
                start = stop
            stop += count
        return [*blocks, (start, stop)]

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = self.x.shape[0], self.keys.shape[0]
        if max(rows, columns) <= self.size and self._part[1] == 1 and len(self._blocks) == 1:
            yield slice(0, rows), slice(0, columns)  # small matrices, where every call counts
            return
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

    def two_sided(self, rows: slice, columns: slice) -> bool:
        """Whether a tile adds to sums of its columns too."""
        return self.mirrored(rows, columns) if self.symmetric else self.columns

    def exclude(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        """Overwrite, in a tile of values, the pairs that do not count."""
        if self.ids is None or self.key_ids is None:
            return values
        if self._equal:
            return self._exclude_other_classes(values, rows, columns, fill)
        if self._group and rows.start == columns.start and values.shape[0] == values.shape[1]:
            return _fill_block_diagonal(values, self._group, fill)
        if not self._may_meet(rows, columns):
            return values
        device = self.x.device
        return values.masked_fill_(self.ids[rows].to(device)[:, None] == self.key_ids[columns].to(device)[None, :], fill)

    def _may_meet(self, rows: slice, columns: slice) -> bool:
        """Whether a row and a key of a tile can have one id, as far as the host knows."""
        if self._group:  # ids are positions over the size of a group
            return rows.start < columns.stop and columns.start < rows.stop
        assert self.ids is not None
        assert self.key_ids is not None
        if not self.ids.is_cpu or not self.key_ids.is_cpu:
            return True
        a, b = self.ids[rows], self.key_ids[columns]
        return bool(a.min() <= b.max()) and bool(b.min() <= a.max())

    def _exclude_other_classes(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        assert self.ids is not None
        if rows.start == columns.start:
            values.fill_diagonal_(fill)
        if self.ids.is_cpu and bool(self.ids[rows.start] == self.ids[columns.stop - 1]):
            return values
        classes = self.ids.to(values.device)
        return values.masked_fill_(classes[rows, None] != classes[None, columns], fill)

    def products(self, rows: slice, columns: slice, scale: float, out: Tensor | None = None) -> Tensor:
        """One tile of ``scale * x @ keys.T``, in scratch memory or in the place given."""
        a, b = self.x[rows], self.keys[columns]
        out = self.scratch(0, a.shape[0], b.shape[0]) if out is None else out
        return torch.addmm(out, a, b.T, beta=0, alpha=scale, out=out)

    def scratch(self, number: int, height: int, width: int) -> Tensor:
        """Scratch memory for a tile; each ``number`` is one buffer, reused from tile to tile."""
        key = number, self.x.dtype
        if key not in self._scratch or self._scratch[key].numel() < height * width:
            room = min(self.size, self.x.shape[0]) * min(self.size, self.keys.shape[0])
            with torch.inference_mode(False):  # such a tensor could not be written to outside of that mode
                self._scratch[key] = torch.empty(max(room, height * width), dtype=self.x.dtype, device=self.x.device)
        return self._scratch[key][: height * width].view(height, width)


def _fill_block_diagonal(values: Tensor, group: int, fill: float) -> Tensor:
    """Overwrite the square blocks of ``group`` rows and columns along the diagonal of a square tile."""
    row, column = values.stride()
    blocks = (values.shape[0] // group, group, group), (group * (row + column), row, column)
    values.as_strided(*blocks, values.storage_offset()).fill_(fill)
    return values


def _scratch_of(device: torch.device) -> dict[tuple[int, torch.dtype], Tensor]:
    """Buffers by number and dtype: those of the thread on the host, new ones on accelerators, whose allocator keeps them."""
    if device.type != "cpu":
        return {}
    if not hasattr(_host_scratch, "buffers"):
        _host_scratch.buffers = {}
    buffers: dict[tuple[int, torch.dtype], Tensor] = _host_scratch.buffers
    return buffers
