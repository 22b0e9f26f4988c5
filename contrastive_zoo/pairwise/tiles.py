"""The tiles of one similarity matrix: their order, which pairs do not count, and buffers that are used again.

Shapes: N rows of `x`, M rows of `keys`, D features.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

# On a CPU a float32 tile and one buffer beside it (1 MiB each) stay in the cache of two cores; accelerators want more work
# per launch.
TILE_CPU = 512
TILE_ACCELERATOR = 4096

# Sweeps whose tiles fit into this many bytes keep them for the backward pass instead of computing them again.
KEEP_BYTES = 16 * 2**20


def tile_size(device: torch.device) -> int:
    """Rows and columns of a tile."""
    return TILE_CPU if device.type == "cpu" else TILE_ACCELERATOR


def kept_numel(rows: int, columns: int, size: int, symmetric: bool) -> int:
    """Entries of all the tiles that a sweep visits."""
    if not symmetric:
        return rows * columns
    strips, rest = rows // size, rows % size
    return size * (strips * rows - size * (strips * (strips - 1) // 2)) + rest * rest


@lru_cache(maxsize=64)
def block_diagonal(size: int, group: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the pairs with equal ids in a square tile whose ids are 0 and on, ``group`` times each."""
    ids = torch.arange(size) // group
    rows, columns = (ids[:, None] == ids[None, :]).nonzero(as_tuple=True)
    return rows, columns


class Tiles:
    """Visits ``x @ keys.T`` tile by tile; without ``keys`` the symmetric ``x @ x.T``, each pair of tiles once.

    Two rows with equal ids do not count as a pair. Where ids are on the host, tiles whose ranges of ids do not meet need no
    mask; ids that increase along the rows make that nearly all tiles.
    """

    def __init__(self, x: Tensor, keys: Tensor | None, ids: Tensor | None, key_ids: Tensor | None) -> None:
        self.x, self.keys, self.symmetric = x, x if keys is None else keys, keys is None
        self.size = tile_size(x.device)
        if self.symmetric:
            ids = key_ids = torch.arange(len(x)) if ids is None else ids
        self.ids, self.key_ids = (None, None) if ids is None or key_ids is None else (ids, key_ids)
        self._row_ranges, self._column_ranges = self._ranges(self.ids), self._ranges(self.key_ids)
        self._group = self._group_size()
        self._scratch: dict[int, Tensor] = {}

    def _ranges(self, ids: Tensor | None) -> list[tuple[int, int]] | None:
        """Smallest and largest id of each tile, None where the host cannot know them without waiting."""
        if ids is None or ids.device.type != "cpu":
            return None
        return [(int(part.min()), int(part.max())) for part in ids.split(self.size)]

    def _group_size(self) -> int:
        """How often each id comes if rows and keys have ids 0, 0, ..., 1, 1, ... on the host, as batches do; else 0."""
        if self.ids is None or self.key_ids is None or self._row_ranges is None or self._column_ranges is None:
            return 0
        group = int((self.ids == 0).sum())
        if group == 0 or self.size % group or self.x.device.type != "cpu":
            return 0
        regular = torch.arange(len(self.ids)) // group
        return group if torch.equal(self.ids, regular) and torch.equal(self.key_ids, self.ids) else 0

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        n, m = len(self.x), len(self.keys)
        for start in range(0, n, self.size):
            for column in range(start if self.symmetric else 0, m, self.size):
                yield slice(start, min(start + self.size, n)), slice(column, min(column + self.size, m))

    def mirrored(self, rows: slice, columns: slice) -> bool:
        """Whether a tile also stands for its transpose, which is not visited."""
        return self.symmetric and rows.start != columns.start

    def exclude(self, values: Tensor, rows: slice, columns: slice, fill: float) -> Tensor:
        """Overwrites, in a tile of values, the pairs that do not count."""
        if self.ids is None or self.key_ids is None:
            return values
        if self._row_ranges is not None and self._column_ranges is not None:
            low, high = self._row_ranges[rows.start // self.size]
            key_low, key_high = self._column_ranges[columns.start // self.size]
            if high < key_low or key_high < low:
                return values
        if self._group:
            values[block_diagonal(len(values), self._group)] = fill
            return values
        device = self.x.device
        return values.masked_fill_(
            self.ids[rows].to(device)[:, None] == self.key_ids[columns].to(device)[None, :], fill
        )

    def products(self, anchors: Tensor, rows: slice, columns: slice, kept: Tensor | None) -> Tensor:
        """One tile of ``anchors @ keys.T``, in scratch memory or in the room kept for it."""
        a, b = anchors[rows], self.keys[columns]
        out = self.scratch(0, len(a), len(b)) if kept is None else self.room(kept, rows, columns)
        return torch.mm(a, b.T, out=out)

    def room(self, kept: Tensor, rows: slice, columns: slice) -> Tensor:
        """The place of a tile in the storage of a sweep that keeps its tiles: strips of rows one after the other."""
        n, m = len(self.x), len(self.keys)
        first = rows.start if self.symmetric else 0
        offset = kept_numel(n, m, self.size, self.symmetric) - kept_numel(
            n - rows.start, m - first, self.size, self.symmetric
        )
        strip = kept.narrow(0, offset, (rows.stop - rows.start) * (m - first)).view(-1, m - first)
        return strip[:, columns.start - first : columns.stop - first]

    def scratch(self, number: int, height: int, width: int) -> Tensor:
        """Scratch memory for a tile; each ``number`` is one buffer, reused from tile to tile."""
        if number not in self._scratch:
            self._scratch[number] = self.x.new_empty(min(self.size, len(self.x)) * min(self.size, len(self.keys)))
        return self._scratch[number][: height * width].view(height, width)
