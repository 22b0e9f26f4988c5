"""The two passes over the visits of a process: sums, and gradients.

Shapes: G sets of N rows and keys, of all processes, K scales.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Sums
from contrastive_zoo.processes.shares import reduced
from contrastive_zoo.ring import blocks
from contrastive_zoo.ring.course import Course, Visit
from contrastive_zoo.ring.passing import GRADIENTS


class Totals:
    """Sums for the rows and keys of all processes, put together from visits.

    Args:
        course: The visits.
    """

    def __init__(self, course: Course) -> None:
        x, everything = course.sweep.x, sum(course.ring.rows)
        shape = course.term.packed().sums, len(course.sweep.sets), everything
        self.course, nothing = course, -torch.inf if course.log else 0.0
        self.rows = x.new_full(shape, nothing)
        self.keys = self.rows if course.symmetric else x.new_full((*shape[:2], everything * course.sweep.both), nothing)
        self.means = x.new_zeros(shape if course.term.packed().means else (*shape[:2], 0))
        self._met: list[tuple[int, slice, Sums]] = []

    def add(self, visit: Visit, sums: Sums) -> None:
        """Add the sums of a visit."""
        self._put(self.rows[:, visit.number, visit.rows], sums.rows)
        if visit.keys is not None and visit.sweep.both:
            self._put(self.keys[:, visit.number, visit.keys], sums.columns)
        if self.means.numel():
            self._met.append((visit.number, visit.rows, sums))

    def _put(self, total: Tensor, sums: Tensor) -> None:
        total.copy_(torch.logaddexp(total, sums) if self.course.log else total + sums)

    def finished(self) -> Sums:
        """The sums; means are weighted by the sums of their visits."""
        for number, place, sums in self._met:
            self.means[:, number, place] += _share(sums.rows, self.rows[:, number, place]) * sums.means
        rows, keys, means = self.rows, self.keys, self.means
        if self.course.sweep.x.dim() == 2:
            rows, keys, means = rows.squeeze(1), keys.squeeze(1), means.squeeze(1)
        return Sums(rows, rows.new_empty(len(rows), 0) if self.course.symmetric else keys, means)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """exp(part - whole), 0 for a row without keys."""
    return (part - whole.masked_fill(whole == -torch.inf, torch.inf)).exp_()


def forward(course: Course, backend: str, needs: Needs) -> tuple[Sums, Tensor]:
    """Sums over the pairs that this process visits, for the rows of all, and what the backward pass needs."""
    totals, kept = Totals(course), [course.sweep.x.new_empty(0)]
    for _, _, visits in course.meetings(course.ring.visits(course.message, course.rounds)):
        for visit in visits:
            sums, entries = blocks.forward(visit.sweep, visit.term, backend, course.needs(visit, needs))
            totals.add(visit, sums)
            kept += [*(each.flatten() for each in sums), entries]
    return totals.finished(), torch.cat(kept)


def kept_numel(course: Course, backend: str, needs: Needs) -> int:
    """Number of entries that `forward` returns for the backward pass."""
    visits = [visit for *_, met in course.meetings(course.visitors_like(course.message)) for visit in met]
    return sum(sum(blocks.kept_sizes(visit.sweep, visit.term, backend, course.needs(visit, needs))) for visit in visits)


class Backward:
    """The backward pass.

    Args:
        course: The visits.
        backend: Name of the backend.
        needs: Whether rows, keys, scale and offset need a gradient.
        sums: Sums of rows and of keys, (K, G, N).
        upstream: Gradients of these sums.
        kept: What `forward` kept.
    """

    def __init__(
        self,
        course: Course,
        backend: str,
        needs: Needs,
        sums: Sequence[Tensor],
        upstream: Sequence[Tensor],
        kept: Tensor,
    ) -> None:
        self.course, self.backend, self.needs, self.sums, self.upstream = course, backend, needs, sums, upstream
        self._kept, self._read = kept, 0
        x, packed = course.sweep.x, course.term.packed()
        self.x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        self.scale, self.offset = (x.new_zeros(() if each is None else each.shape) for each in (packed.scale, packed.offset))

    def gradients(self) -> Gradients:
        """Gradients of the rows and keys of this process, times the number of processes, and whole ones of scale and offset."""
        course, ring = self.course, self.course.ring
        own = self.x if course.symmetric else torch.zeros_like(course.block, memory_format=torch.contiguous_format)
        travels, arriving = self.needs[0] if course.symmetric else self.needs[1], None
        for number, (owner, block, visits) in enumerate(course.meetings(ring.visits(course.message, course.rounds))):
            gradient = own if number == 0 else torch.zeros_like(block)
            for visit in visits:
                self._visit(visit, gradient, owner)
            if number and travels:
                if arriving is not None:
                    gradient += arriving()
                hops = 1 if number < course.rounds else -course.rounds
                arriving = ring.send(gradient, owner, hops, GRADIENTS)
        if arriving is not None:
            own += arriving()
        members = float(len(ring.rows))
        for each in (self.x, own) if own is not self.x else (own,):
            each.mul_(members)
        scale, offset = (
            reduced(each, ring.group, dist.ReduceOp.SUM) if need else each
            for each, need in zip((self.scale, self.offset), self.needs[2:], strict=True)
        )
        return Gradients(self.x, own, scale, offset)

    def _visit(self, visit: Visit, block: Tensor, owner: int) -> None:
        """Add the gradients of a visit to those of this process's rows and of the block."""
        course, needs = self.course, self.course.needs(visit, self.needs)
        sums, kept = self._entries(visit, needs)
        upstream = self._upstream(0, visit, visit.rows, sums.rows), self._upstream(1, visit, visit.keys, sums.columns)
        found = blocks.backward(visit.sweep, visit.term, self.backend, sums, upstream, kept, needs)
        mine, theirs = (self.x, course.ring.rank), (block, owner)
        sides = (theirs, mine) if visit.swapped else (mine, theirs)
        for (gradient, process), place, part in zip(sides, (visit.rows, visit.keys), found[:2], strict=True):
            if place is not None and part.numel():
                start = course.ring.place(process).start
                rows = gradient if gradient.dim() == 2 else gradient[visit.number]
                rows[place.start - start : place.stop - start] += part
        for total, part, need in zip((self.scale, self.offset), found[2:], needs[2:], strict=True):
            if need:
                (total if total.numel() == part.numel() else total[..., visit.rows]).add_(part)

    def _entries(self, visit: Visit, needs: Needs) -> tuple[Sums, Tensor]:
        """What `forward` kept of a visit."""
        sizes = blocks.kept_sizes(visit.sweep, visit.term, self.backend, needs)
        *sums, kept = self._kept[self._read : self._read + sum(sizes)].split(sizes)
        self._read += sum(sizes)
        return Sums(*(each.view(len(self.sums[0]), -1) for each in sums)), kept

    def _upstream(self, side: int, visit: Visit, place: slice | None, sums: Tensor) -> Tensor:
        """Gradient of the sums of a visit: of log-sum-exps, a share of that of the total."""
        if place is None or not sums.numel():
            return torch.zeros_like(sums)
        grad = self.upstream[side][:, visit.number, place]
        if not isinstance(visit.term, LogSumExp):
            return grad.contiguous()
        return _share(sums, self.sums[side][:, visit.number, place]).mul_(grad)
