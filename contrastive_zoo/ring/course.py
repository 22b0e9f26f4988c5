"""Who meets whom: the pairs of blocks that a process visits, each a sweep of `contrastive_zoo.pairwise`.

Shapes: G sets of N rows, of all processes; the rows and keys of a process are a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import LogSumExp, Needs, Softplus, Term
from contrastive_zoo.ring.passing import Ring


class Visit(NamedTuple):
    """A part of the pairs of two blocks.

    Attributes:
        sweep: The pairs, of one set of rows.
        term: What is summed over them.
        number: Number of the set of rows.
        rows: Place of the rows among the rows of all processes.
        keys: Place of the keys; None where rows are their own keys.
        swapped: Whether the keys, and not the rows, belong to this process.
    """

    sweep: Sweep
    term: Term
    number: int
    rows: slice
    keys: slice | None = None
    swapped: bool = False


@dataclass(frozen=True, eq=False)
class Course:
    """Who meets whom: the visits of this process, in the order in which they take place.

    Attributes:
        ring: The processes, with the number of rows of each, which is also that of its keys.
        rounds: How many processes a block visits.
        sweep: The rows and keys of this process, with the ids of the rows and keys of all.
        term: What is summed, with scales and biases for the rows of all.
    """

    ring: Ring
    rounds: int
    sweep: Sweep
    term: Term

    @property
    def symmetric(self) -> bool:
        """Whether rows are their own keys."""
        return self.sweep.keys is None

    @property
    def block(self) -> Tensor:
        """The rows or keys of this process that visit others."""
        return self.sweep.x if self.sweep.keys is None else self.sweep.keys

    @property
    def message(self) -> Tensor:
        """The block as others get it: in half precision if it was rounded to it, which takes half the bytes."""
        rounded = self.sweep.bound.rounded if self.symmetric else self.sweep.bound.rounded_keys
        return self.block if rounded is None else rounded

    @property
    def log(self) -> bool:
        """Whether sums are logarithms of sums."""
        return isinstance(self.term, LogSumExp)

    def meetings(self, visitors: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor, list[Visit]]]:
        """The owner, the rows and the visits of each block, first this process's own."""
        rank, own = self.ring.rank, self.ring.place(self.ring.rank)
        if self.symmetric:
            yield rank, self.block, [self._at_home(number, own) for number in range(len(self.sweep.sets))]
        else:
            yield rank, self.block, self._visits(rank, self.block, self.sweep.bound.rounded_keys)
        for owner, block in visitors:
            computed = block.to(self.block.dtype)
            yield owner, computed, self._visits(owner, computed, None if block is computed else block)

    def _at_home(self, number: int, own: slice) -> Visit:
        """The rows of this process among themselves."""
        rounded, ids = self.sweep.bound.rounded, self._ids(self.sweep.ids, own, home=True)
        bound = self.sweep.bound._replace(rounded=None if rounded is None else _sets(rounded)[number])
        sweep = replace(self.sweep, x=self.sweep.sets[number], ids=ids, part=(0, 1), bound=bound)
        return Visit(sweep, _of_rows(self.term, own), number, own)

    def _visits(self, owner: int, block: Tensor, block_in_half: Tensor | None) -> list[Visit]:
        """The rows of this process with a block of keys, and its copy in half precision, if there is one."""
        mine, theirs = self._halves(owner)
        own, other = (self.ring.place(process) for process in (self.ring.rank, owner))
        rows, keys = _within(own, mine), _within(other, theirs)
        if rows.start == rows.stop or keys.start == keys.stop:
            return []
        found, home, rounded = [], owner == self.ring.rank, self.sweep.bound.rounded
        ids = self._ids(self.sweep.ids, rows, home)
        key_ids = self._ids(self.sweep.ids if self.symmetric else self.sweep.key_ids, keys, home)
        for number, (x, y) in enumerate(zip(self.sweep.sets, _sets(block), strict=True)):
            in_half = None if rounded is None else _sets(rounded)[number][mine]
            keys_in_half = None if block_in_half is None else _sets(block_in_half)[number][theirs]
            bound = self.sweep.bound._replace(rounded=in_half, rounded_keys=keys_in_half)
            sweep = replace(self.sweep, x=x[mine], keys=y[theirs], part=(0, 1), bound=bound)
            sweep = replace(sweep, ids=ids, key_ids=key_ids, group=self.sweep.group if home else 0)
            if not self.symmetric:
                found.append(Visit(sweep, _of_rows(self.term, rows), number, rows, keys))
            elif _serves_both(self.term):
                found.append(Visit(replace(sweep, both=True), self.term, number, rows, keys))
            else:
                bound = bound._replace(rounded=keys_in_half, rounded_keys=in_half)
                turned = replace(sweep, x=y[theirs], keys=x[mine], ids=key_ids, key_ids=ids, bound=bound)
                found.append(Visit(sweep, _of_rows(self.term, rows), number, rows, keys))
                found.append(Visit(turned, _of_rows(self.term, keys), number, keys, rows, swapped=True))
        return found

    def _halves(self, owner: int) -> tuple[slice, slice]:
        """Which rows of this process meet which of a block: all, or half of either if the block's owner takes the others."""
        processes, rank = len(self.ring.rows), self.ring.rank
        mine, theirs = (slice(0, self.ring.rows[process]) for process in (rank, owner))
        if self.symmetric and 2 * ((rank - owner) % processes) == processes:
            if rank < owner:
                return slice(0, mine.stop // 2), theirs
            return mine, slice(theirs.stop // 2, theirs.stop)
        return mine, theirs

    def _ids(self, ids: Tensor | None, place: slice, home: bool) -> Tensor | None:
        """The ids of some rows; none for a visiting block, if samples are known to differ."""
        if ids is None or not self.sweep.group:
            return None if ids is None else ids[place]
        return ids[: place.stop - place.start] if home else None  # numbered from 0

    def needs(self, visit: Visit, needs: Needs) -> Needs:
        """What needs a gradient, of rows, keys, scale and bias in a visit."""
        of_keys = needs[0] if self.symmetric else needs[1]
        return needs[0], of_keys and visit.keys is not None, needs[2], needs[3]

    def visitors_like(self, block: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The blocks that will visit this process, of the right shape but without values."""
        for number in range(1, self.rounds + 1):
            owner = (self.ring.rank - number) % len(self.ring.rows)
            yield owner, block.new_empty(*block.shape[:-2], self.ring.rows[owner], block.shape[-1])


def _sets(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.unbind() if rows.dim() == 3 else (rows,)


def _within(place: slice, part: slice) -> slice:
    return slice(place.start + part.start, place.start + part.stop)


def _serves_both(term: Term) -> bool:
    """Whether rows and keys have the same scales, so that one sweep serves both."""
    return isinstance(term, LogSumExp) and term.scale.shape[1] == 1 and not term.mean


def _of_rows(term: Term, place: slice) -> Term:
    """The term with the scales and biases of some rows."""
    if isinstance(term, Softplus):
        return Softplus(term.scale, term.bias[place])
    assert isinstance(term, LogSumExp)
    return term if term.scale.shape[1] == 1 else LogSumExp(term.scale[:, place].contiguous(), term.mean)
