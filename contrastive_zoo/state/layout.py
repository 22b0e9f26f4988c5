"""Which rows of the tables per sample a process holds: all of them, or its share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import embedding_bag

from contrastive_zoo.operators import operator
from contrastive_zoo.processes.gather import named_group
from contrastive_zoo.processes.shares import merged


@operator("contrastive_zoo::rows_of_table", "(Tensor table, Tensor index) -> Tensor")
def rows_of_table(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` as an opaque operator: else a compiled backward pass could read the table again, after its update."""
    return table[index]


@rows_of_table.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty(index.shape[0], *table.shape[1:])


@dataclass(frozen=True)
class Layout:
    """The rows of tables that a process holds: consecutive ones, divided as `torch.chunk` and DTensor divide.

    Attributes:
        size: Number of rows that all processes hold together.
        rank: Number of this process.
        world: Number of processes that divide the rows; 1 if each holds all.
        group: Name of the group of processes; empty if each holds all rows.
    """

    size: int
    rank: int = 0
    world: int = 1
    group: str = ""

    @staticmethod
    def over(size: int, group: dist.ProcessGroup | None) -> "Layout":
        """The share of this process, of rows that the processes of a group divide."""
        members = dist.group.WORLD if group is None else group
        assert members is not None
        return Layout(size, dist.get_rank(members), dist.get_world_size(members), members.group_name)

    @property
    def divided(self) -> bool:
        """Whether several processes divide the rows."""
        return self.world > 1

    @property
    def each(self) -> int:
        """Number of rows of every process but the last ones."""
        return -(-self.size // self.world)

    @property
    def first(self) -> int:
        """Number of the first row of this process."""
        return min(self.rank * self.each, self.size)

    @property
    def count(self) -> int:
        """Number of rows of this process, possibly 0."""
        return min(self.each, self.size - self.first)

    def own(self, whole: Tensor) -> Tensor:
        """The rows of this process, of a whole table."""
        return whole[self.first : self.first + self.count] if self.divided else whole

    def find(self, index: Tensor, views: int = 1) -> tuple[Tensor, Tensor]:
        """Places of rows among those of this process, any place for a row of another one; and whether each is of this process.

        Args:
            index: Numbers of rows.
            views: Into how many consecutive rows each row of the table is divided.
        """
        place = index - self.first * views
        mine = (place >= 0) & (place < self.count * views)
        return place.clamp(0, max(self.count * views - 1, 0)), mine

    def read(self, index: Tensor, *tables: Tensor, views: int = 1) -> tuple[Tensor, ...]:
        """Rows of tables; all processes read the same rows, by one sum over processes, and bit for bit.

        Args:
            index: (B,) numbers of rows.
            *tables: The rows of this process, of each table.
            views: As for `find`, for tables that are divided further.
        """
        if not self.divided:
            return tuple(rows_of_table(table, index) for table in tables)
        place, mine = self.find(index, views)
        found = [rows_of_table(t, place) if len(t) else t.new_zeros(len(index), *t.shape[1:]) for t in tables]
        return self.of_owners(mine, *found)

    def held(self, index: Tensor | None, *tables: Tensor) -> tuple[Tensor, ...]:
        """Rows of tables as `read` gives them, or the tables without an index."""
        return tables if index is None else self.read(index, *tables)

    def of_owners(self, mine: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Values (B, ...) of which each process knows those that are ``mine`` (B,), put together on all processes."""
        message = torch.where(mine[:, None], pack(*values), 0)
        return unpack(merged(message, False, self.group), *values)

    def near(self, index: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Rows of tables as far as this process holds them, and any rows in the place of others."""
        place, _ = self.find(index)
        return tuple(t[place] if len(t) else t.new_zeros(len(index), *t.shape[1:]) for t in tables)

    def weighted_sum(self, table: Tensor, places: Tensor, weights: Tensor, views: int) -> Tensor:
        """(N, D) weighted sum of K rows for each of N, at ``places`` (N, K) with ``weights`` (N, K), over all processes."""
        place, mine = self.find(places, views)
        if not len(table):
            return merged(table.new_zeros(len(places), table.shape[1]), False, self.group)
        part = embedding_bag(place, table, per_sample_weights=torch.where(mine, weights, 0), mode="sum")
        return merged(part, False, self.group)

    @torch.no_grad()
    def write(self, table: Tensor, index: Tensor, new: Tensor, where: Tensor) -> None:
        """Replace rows of a table, each on the process that holds it; rows with equal numbers must have equal values.

        Args:
            table: The rows of this process.
            index: (B,) numbers of rows.
            new: (B, ...) values.
            where: Which values to replace, of a shape that broadcasts to that of ``new``.
        """
        if not self.divided:
            table[index] = torch.where(where, new, table[index])
        elif len(table):
            place, mine = self.find(index)
            # No size may depend on values: rows of others take the place and the values of one row of this process.
            chosen = torch.where(mine, torch.arange(len(index), device=index.device), mine.int().argmax())
            values = torch.where(where, new, table[place])[chosen]
            place = place[chosen]
            table[place] = torch.where(mine.any(), values, table[place])

    def move(self, old: Tensor, new: Tensor, layout: "Layout") -> None:
        """Copy the rows of a table to a table of another layout, of the same processes and at least as many rows."""
        if not self.divided:
            new[: len(old)] = old
            return
        for rank in range(self.world):
            target = replace(layout, rank=rank)
            index = torch.arange(target.first, min(target.first + target.count, self.size), device=old.device)
            if len(index):
                (rows,) = self.read(index, old)
                if rank == self.rank:
                    new[: len(rows)] = rows

    def as_dtensor(self, rows: Tensor) -> Tensor:
        """The rows of this process as a part of a `DTensor` that is sharded over the processes."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = DeviceMesh.from_group(named_group(self.group), rows.device.type)
        shape = torch.Size((self.size, *rows.shape[1:]))
        stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def own_of_saved(self, name: str, saved: Tensor) -> Tensor:
        """The rows of this process, of a saved table: a tensor, or a `DTensor`, which processes may have to put together.

        Raises:
            ValueError: The table has another number of rows.
        """
        if saved.dim() == 0 or len(saved) != self.size:
            raise ValueError(f"{name} must have {self.size} rows, got shape {tuple(saved.shape)}. Is it of another dataset?")
        if not is_dtensor(saved):
            return self.own(saved)
        of_saved: Any = saved
        mesh, (placement, *others) = of_saved.device_mesh, of_saved.placements
        if not others and placement.is_shard(0) and (mesh.size(), mesh.get_local_rank()) == (self.world, self.rank):
            local: Tensor = of_saved.to_local()
            return local
        return self.own(whole(saved))


_MADE_WITH: ContextVar[Layout | None] = ContextVar("layout of tables", default=None)


@contextmanager
def dividing(layout: Layout) -> Iterator[None]:
    """Tables per sample that are registered within have a layout from the beginning, so no process allocates them whole."""
    token = _MADE_WITH.set(layout)
    try:
        yield
    finally:
        _MADE_WITH.reset(token)


def layout_of(size: int) -> Layout:
    """The layout of a new table per sample."""
    layout = _MADE_WITH.get()
    return layout if layout is not None and layout.size == size else Layout(size)


def is_dtensor(value: object) -> bool:
    """Whether a value is a `DTensor`; imports nothing, as whoever has one has imported its module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(saved: Tensor) -> Tensor:
    """A saved tensor; the processes that hold the parts of a `DTensor` put them together, so all must call this."""
    of_saved: Any = saved
    gathered: Tensor = of_saved.full_tensor() if is_dtensor(saved) else saved
    return gathered


def pack(*values: Tensor) -> Tensor:
    """Values (B, ...) of any types as one tensor of integers, (B, W), whose sum with zeros has the same bits."""
    of_bytes = torch.cat([value.reshape(len(value), -1).contiguous().view(torch.uint8) for value in values], 1)
    return torch.nn.functional.pad(of_bytes, (0, -of_bytes.shape[1] % 4)).view(torch.int32)


def unpack(message: Tensor, *like: Tensor) -> tuple[Tensor, ...]:
    """The values of a packed message (..., W), of the types and shapes, but for the first dimension, of those given."""
    sizes = [value.element_size() * prod(value.shape[1:]) for value in like]
    parts = message.view(torch.uint8)[..., : sum(sizes)].split(sizes, -1)
    return tuple(
        # A copy, since a view in another type must begin at a multiple of its size.
        part.clone(memory_format=torch.contiguous_format).view(value.dtype).view(*message.shape[:-1], *value.shape[1:])
        for part, value in zip(parts, like, strict=True)
    )
