"""The tiles of one similarity matrix: their order, the excluded pairs, and reusable buffers.

Shapes: N rows of `x`, M rows of `keys`, D features, K scales.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.devices import beside
from contrastive_zoo.pairwise import sweep as sweeps
from contrastive_zoo.pairwise.sweep import Sweep, strips

# On a CPU a float32 tile and one buffer (1 MiB each) fit in the cache of two cores. A small matrix takes less time as a single
# tile, except a symmetric one, where a single tile forgoes the symmetry. Accelerators need more work per launch.
TILE_CPU = 512
SINGLE_TILE_CPU = 1024
TILE_ACCELERATOR = 4096

# A tensor for columns, (K, M), and a tensor for rows, (K, N), in the order of the tile axes that are summed over.
Sides = tuple[Tensor, Tensor]


class _Buffers(threading.local):
    """A pool of buffers by number and dtype, per thread: fresh buffers would cost page faults in every sweep."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, torch.dtype], Tensor] = {}


_on_host = _Buffers()


def tile_size(rows: int, columns: int, device: torch.device, symmetric: bool) -> int:
    """Rows and columns of a tile."""
    on_host = SINGLE_TILE_CPU if max(rows, columns) <= SINGLE_TILE_CPU and not symmetric else TILE_CPU
    return on_host if device.type == "cpu" else TILE_ACCELERATOR


def tiles_numel(sweep: Sweep) -> int:
    """Number of entries of all tiles of one set of rows, including the tiles of other parts."""
    rows = sweep.x.shape[-2]
    if sweep.keys is not None:
        return rows * sweep.keys.shape[0]
    size = tile_size(rows, rows, sweep.x.device, True)
    strips, rest = rows // size, rows % size
    return size * (strips * rows - size * (strips * (strips - 1) // 2)) + rest * rest


def view_of(rows: Tensor, side: slice) -> Tensor:
    """Some rows; for all rows, the tensor itself, which avoids the cost of a view."""
    return rows if side.stop - side.start == rows.shape[0] else rows[side]


def fill_groups(values: Tensor, group: int, fill: float) -> Tensor:
    """Overwrite the blocks of ``group`` rows and columns along the diagonal of square matrices (..., N, N)."""
    *lead, rows, _ = values.shape
    values.view(*lead, rows // group, group, rows // group, group).diagonal(dim1=-4, dim2=-2).fill_(fill)
    return values


class Tiles:
    """Visits ``x @ keys.T`` of one set of rows tile by tile; without keys the symmetric ``x @ x.T``, each pair of tiles once.

    With ids on the host, a tile whose rows and columns have disjoint ranges of ids needs no mask; if ids increase along the
    rows, this holds for nearly all tiles. If pairs with equal ids are summed over, rows are sorted by id and split into blocks
    that share no id: one large class, or several small classes. Only pairs within a block are then visited. With separate keys,
    tiles whose rows and columns have disjoint ranges of ids are left out instead. Ids on an accelerator are not read.

    Args:
        sweep: The sweep.
        x: (N, D) one of the sweep's sets of rows.
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
        # Ids that are known to be 0, 0, ..., 1, 1, ... need no mask, if no group lies on the border of two tiles.
        fits = group > 0 and not (self.size % group or sweeps.GRAIN % group or x.shape[0] % group)
        self._group = group if fits and self._known and not self._equal else 0
        by_class = self._equal and self._known and self.symmetric
        self._blocks = self._class_blocks() if by_class else [(0, x.shape[0])]
        self._compared: tuple[Tensor, Tensor] | None = None
        self._regular = group if self._known else 0
        self._buffers = _on_host.found if x.is_cpu else {}  # the allocator of an accelerator keeps its memory

    def _class_blocks(self) -> list[tuple[int, int]]:
        """First and last row of each block of classes; small classes share a block of at most a quarter of a tile."""
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
        by_range = self._equal and not self.symmetric
        if max(rows, columns) <= self.size and self._part[1] == 1 and len(self._blocks) == 1 and not by_range:
            return iter([(slice(0, rows), slice(0, columns))])  # fast path: a small matrix is a single tile
        return self._all_tiles()

    def _all_tiles(self) -> Iterator[tuple[slice, slice]]:
        for low, high in strips(self.x.shape[0], self._part):
            for start, stop in self._blocks:
                for tile in self._tiles_of(max(low, start), min(high, stop), stop):
                    if not self._none_counts(*tile):
                        yield tile

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
        """Whether a tile also represents its transpose, which is not visited."""
        return self.symmetric and rows.start != columns.start

    def sides(self, rows: slice, columns: slice) -> tuple[tuple[int, slice], ...]:
        """The rows and columns whose sums a tile contributes to, each with the axis to sum over."""
        two_sided = self.mirrored(rows, columns) if self.symmetric else self.columns
        return ((1, rows), (0, columns)) if two_sided else ((1, rows),)

    def zeros(self, scales: int) -> Sides:
        """Zeros for columns and for rows: one shared tensor in a symmetric sweep; (K, 0) for columns without sums."""
        rows = self.x.new_zeros(scales, self.x.shape[0])
        return rows if self.symmetric else self.x.new_zeros(scales, self.keys.shape[0] if self.columns else 0), rows

    def largest_logit(self, scale: Tensor) -> float:
        """An upper bound on scale times |similarity|; infinite if computing a bound would need a synchronisation."""
        known = self._norm_bound < torch.inf
        if not scale.is_cpu or not (known or self.x.is_cpu):
            return torch.inf
        lengths = (self._norm_bound,) * 2 if known else [float(rows.norm(dim=1).max()) for rows in (self.x, self.keys)]
        return (abs(scale.item()) if scale.numel() == 1 else float(scale.abs().max())) * lengths[0] * lengths[1]

    def exclude(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        """Overwrite the excluded pairs in a tile of values."""
        if self._ids is None:
            return values
        if rows.start == columns.start and self._equal and self.symmetric:
            values.fill_diagonal_(fill)
        if rows == columns and self._group:
            return fill_groups(values, self._group, fill)
        if self._all_count(rows, columns):
            return values
        ids, key_ids = self._ids_beside_rows()
        ids, key_ids = ids[rows, None], key_ids[columns]
        return values.masked_fill_(ids != key_ids if self._equal else ids == key_ids, fill)

    def _ids_beside_rows(self) -> tuple[Tensor, Tensor]:
        """The ids of rows and of keys on the device of the rows; ids that are known to be regular are made there."""
        assert self._ids is not None
        if self._compared is None:
            found = [self._beside_rows(ids) for ids in (self._ids[:1] if self._ids[0] is self._ids[1] else self._ids)]
            self._compared = found[0], found[-1]
        return self._compared

    def _beside_rows(self, ids: Tensor) -> Tensor:
        if self._regular and not self.x.is_cpu:
            return torch.arange(len(ids), device=self.x.device) // self._regular
        return beside(ids, self.x)

    def _all_count(self, rows: slice, columns: slice) -> bool:
        """Whether the host knows that no pair of a tile, its diagonal aside, is excluded."""
        if self._group:  # ids are positions // group
            return columns.stop <= rows.start or rows.stop <= columns.start
        if not self._known or self._ids is None:
            return False
        if not self._equal:
            return self._ranges_are_disjoint(rows, columns)
        # Sorted by id, so all ids in between are the same.
        return self.symmetric and bool(self._ids[0][rows][0] == self._ids[1][columns][-1])

    def _none_counts(self, rows: slice, columns: slice) -> bool:
        """Whether the host knows that no pair of a tile of rows and separate keys has equal ids, which alone count."""
        return self._equal and self._known and not self.symmetric and self._ranges_are_disjoint(rows, columns)

    def _ranges_are_disjoint(self, rows: slice, columns: slice) -> bool:
        assert self._ids is not None
        ids, key_ids = self._ids[0][rows], self._ids[1][columns]
        return bool(ids.min() > key_ids.max()) or bool(key_ids.min() > ids.max())

    def products(self, rows: slice, columns: slice, scale: float, out: Tensor | None = None) -> Tensor:
        """One tile of ``scale * x @ keys.T``, in a buffer or in ``out``."""
        a, b = view_of(self.x, rows), view_of(self.keys, columns)
        out = self.scratch(0, a.shape[0], b.shape[0]) if out is None else out
        return torch.addmm(out, a, b.T, beta=0, alpha=scale, out=out)

    def scratch(self, number: int, height: int, width: int) -> Tensor:
        """A buffer for a tile; each ``number`` is one buffer, reused from tile to tile."""
        key = number, self.x.dtype
        if key not in self._buffers or self._buffers[key].numel() < height * width:
            room = min(self.size, self.x.shape[0]) * min(self.size, self.keys.shape[0])
            with torch.inference_mode(False):  # inference tensors are read-only outside that mode
                self._buffers[key] = torch.empty(max(room, height * width), dtype=self.x.dtype, device=self.x.device)
        return self._buffers[key][: height * width].view(height, width)
