"""The passes over visits as one pair of operators: opaque to `torch.compile`, differentiable once."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from contrastive_zoo.operators import operator, without_autocast
from contrastive_zoo.pairwise.operator_ import SUMS, TAKEN, differentiate, needed, pack, unpack
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, Sums, Term
from contrastive_zoo.ring import passes
from contrastive_zoo.ring.course import Course
from contrastive_zoo.ring.passing import Ring

TAKEN_IN_RING = f"{TAKEN}, str backend, str group, int[] rows_of_each, int rounds"


def _unpacked(taken: Sequence[Any]) -> tuple[Course, str]:
    *given, backend, group, rows, rounds = taken
    sweep, term = unpack(given)
    return Course(Ring(group, sweep.part[0], tuple(rows)), rounds, sweep, term), backend


@operator("contrastive_zoo::ring", f"({TAKEN_IN_RING}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)")
def ring_operator(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of rows, sums of keys and means over the pairs that this process visits, and what the backward pass needs."""
    *given, needs = taken
    with without_autocast(taken[0]):
        sums, kept = passes.forward(*_unpacked(given), tuple(needs))
    return *sums, kept


@ring_operator.register_fake
def _(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *given, needs = taken
    course, backend = _unpacked(given)
    return *passes.Totals(course).finished(), course.sweep.x.new_empty(passes.kept_numel(course, backend, tuple(needs)))


@operator(
    "contrastive_zoo::ring_backward",
    f"({TAKEN_IN_RING}, {SUMS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)
def ring_operator_backward(*taken: Any) -> Gradients:
    """Gradients of x, keys, scale and offset; empty for an input that needs no gradient."""
    *given, rows, columns, _, kept, grad_rows, grad_columns, needs = taken
    course, backend = _unpacked(given)
    if course.symmetric:
        columns, grad_columns = rows, grad_rows
    by_set = [each if course.sweep.x.dim() == 3 else each.unsqueeze(1) for each in (rows, columns, grad_rows, grad_columns)]
    with without_autocast(rows):
        found = passes.Backward(course, backend, tuple(needs), by_set[:2], by_set[2:], kept).gradients()
    gradients = [each.to(old) if need else each.new_empty(0) for each, old, need in zip(found, given, needs, strict=False)]
    return Gradients(*gradients)


differentiate(ring_operator, ring_operator_backward)


def compute(sweep: Sweep, term: Term, name: str, group: str, rows: Sequence[int], rounds: int) -> Sums:
    """The sums over the pairs that this process visits, for the rows and keys of all processes; see `Course`."""
    packed = pack(sweep, term)
    sums = ring_operator(*packed, name, group, list(rows), rounds, needed(packed))
    return Sums(*sums[:3]).without_axis()
