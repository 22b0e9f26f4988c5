"""The tiles of one similarity matrix: their order, which pairs do not count, and buffers that are used again.

Shapes: N rows of `x`, M rows of `keys`, D features.
"""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_zoo.sample_ids import regular_ids

# On a CPU a float32 tile and one buffer beside it (1 MiB each) stay in the cache of two cores; a matrix of few tiles is better
# off as a single one, unless that forgoes its symmetry. Accelerators want more work per launch.
TILE_CPU = 512
SINGLE_TILE_CPU = 1024
TILE_ACCELERATOR = 4096

# Sweeps whose tiles fit into this many bytes keep them for the backward pass instead of computing them again.
KEEP_BYTES = 16 * 2**20

# Scratch memory on the host stays with its thread: handed back after every sweep, it would be new again in the next.
_host_scratch = threading.local()


# Tiles of a sweep in parts are as wide as a multiple of this.
GRAIN = 32


def tile_size(rows: int, columns: int, device: torch.device, symmetric: bool, parts: int = 1) -> int:
    """Rows and columns of a tile of a matrix that is visited in so many parts."""
    on_host = SINGLE_TILE_CPU if max(rows, columns) <= SINGLE_TILE_CPU and not symmetric else TILE_CPU
    size = on_host if device.type == "cpu" else TILE_ACCELERATOR
    if parts == 1:
        return size
    # Each part takes two strips of every 2 * parts: small tiles, so that there are as many strips, and full rounds of them.
    strips = 2 * parts * -(-rows // (2 * parts * size))
    return GRAIN * -(-rows // (strips * GRAIN))


def tiles_numel(rows: int, columns: int, size: int, symmetric: bool) -> int:
    """Entries of all the tiles that a sweep visits."""
    if not symmetric:
        return rows * columns
    strips, rest = rows // size, rows % size
    return size * (strips * rows - size * (strips * (strips - 1) // 2)) + rest * rest


class Tiles:
    """Visits ``x @ keys.T`` tile by tile; without ``keys`` the symmetric ``x @ x.T``, each pair of tiles once.

    Or visits one of several parts of the tiles, ``part`` = (number, parts), whose work is about equal.

    Two rows with equal ids do not count as a pair. Where ids are on the host, tiles whose ranges of ids do not meet need no
    mask; ids that increase along the rows make that nearly all tiles.
    """

    def __init__(
        self,
        x: Tensor,
        keys: Tensor | None,
        ids: Tensor | None,
        key_ids: Tensor | None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.x, self.keys, self.symmetric = x, x if keys is None else keys, keys is None
        self.part, self.parts = part
        self.size = tile_size(x.shape[0], self.keys.shape[0], x.device, self.symmetric, self.parts)
        if self.symmetric:
            ids = key_ids = regular_ids(x.shape[0], 1) if ids is None else ids
        paired = ids is not None and key_ids is not None
        self.ids, self.key_ids = (ids, key_ids) if paired else (None, None)
        self._group = self._group_size()
        self._row_ranges = self._ranges(self.ids)
        self._column_ranges = self._row_ranges if self.symmetric else self._ranges(self.key_ids)
        self._scratch = _scratch_of(x.device)

    def _group_size(self) -> int:
        """How often each id comes if rows and keys have ids 0, 0, ..., 1, 1, ... on the host, as batches do; else 0."""
        if self.ids is None or self.key_ids is None or not self.ids.is_cpu or not self.key_ids.is_cpu or not self.x.is_cpu:
            return 0
        rows = self.ids.shape[0]
        group = 2 if self.ids is regular_ids(rows, 2) else rows // max(int(self.ids[-1]) + 1, 1)
        if group == 0 or self.size % group or rows % group:
            return 0
        regular = regular_ids(rows, group)
        return group if all(ids is regular or torch.equal(ids, regular) for ids in (self.ids, self.key_ids)) else 0

    def _ranges(self, ids: Tensor | None) -> list[tuple[int, int]] | None:
        """Smallest and largest id of each tile; None where the host cannot know them without waiting, or need not."""
        if ids is None or self._group or not ids.is_cpu:
            return None
        return [(int(part.min()), int(part.max())) for part in torch.split(ids, self.size)]

    def _strips(self) -> Iterator[int]:
        """First rows of the strips of tiles to visit.

        Of each 2P strips, P being the number of parts, part p takes the p-th and the p-th from the end: in a symmetric sweep,
        whose strips grow shorter, all such pairs are of one length.
        """
        for number, start in enumerate(range(0, self.x.shape[0], self.size)):
            place = number % (2 * self.parts)
            if min(place, 2 * self.parts - 1 - place) == self.part:
                yield start

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        n, m = self.x.shape[0], self.keys.shape[0]
        for start in self._strips():
            for column in range(start if self.symmetric else 0, m, self.size):
                yield slice(start, min(start + self.size, n)), slice(column, min(column + self.size, m))

    def mirrored(self, rows: slice, columns: slice) -> bool:
        """Whether a tile also stands for its transpose, which is not visited."""
        return self.symmetric and rows.start != columns.start

    def exclude(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        """Overwrites, in a tile of values, the pairs that do not count."""
        if self.ids is None or self.key_ids is None:
            return values
        if self._group:
            return _fill_block_diagonal(values, self._group, fill) if rows.start == columns.start else values
        if self._row_ranges is not None and self._column_ranges is not None:
            low, high = self._row_ranges[rows.start // self.size]
            key_low, key_high = self._column_ranges[columns.start // self.size]
            if high < key_low or key_high < low:
                return values
        device = self.x.device
        return values.masked_fill_(self.ids[rows].to(device)[:, None] == self.key_ids[columns].to(device)[None, :], fill)

    def products(self, rows: slice, columns: slice, kept: Tensor | None, scale: float = 1.0) -> Tensor:
        """One tile of ``scale * x @ keys.T``, in scratch memory or in the room kept for it."""
        a, b = self.x[rows], self.keys[columns]
        out = self.scratch(0, a.shape[0], b.shape[0]) if kept is None else self.room(kept, rows, columns)
        return torch.addmm(out, a, b.T, beta=0, alpha=scale, out=out)

    def room(self, kept: Tensor, rows: slice, columns: slice) -> Tensor:
        """The place of a tile in the storage of a sweep that keeps its tiles: one after the other, strip by strip."""
        n, m = self.x.shape[0], self.keys.shape[0]
        first = rows.start if self.symmetric else 0
        height, width = rows.stop - rows.start, columns.stop - columns.start
        offset = height * (columns.start - first) + tiles_numel(n, m, self.size, self.symmetric)
        offset -= tiles_numel(n - rows.start, m - first, self.size, self.symmetric)
        return kept[offset : offset + height * width].view(height, width)

    def scratch(self, number: int, height: int, width: int) -> Tensor:
        """Scratch memory for a tile; each ``number`` is one buffer, reused from tile to tile."""
        key = number, self.x.dtype
        if key not in self._scratch or self._scratch[key].numel() < height * width:
            room = min(self.size, self.x.shape[0]) * min(self.size, self.keys.shape[0])
            with torch.inference_mode(False):  # such a tensor could not be written to outside of that mode
                self._scratch[key] = torch.empty(max(room, height * width), dtype=self.x.dtype, device=self.x.device)
        return self._scratch[key][: height * width].view(height, width)


def _fill_block_diagonal(values: Tensor, group: int, fill: float) -> Tensor:
    """Overwrites the square blocks of ``group`` rows and columns along the diagonal of a square tile."""
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
