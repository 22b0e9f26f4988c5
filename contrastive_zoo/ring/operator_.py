"""The passes over visits as one pair of operators: opaque to `torch.compile`, differentiable once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.pairwise.operator_ import TAKEN, TENSORS, WORDS, pack, unpack
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, Sums, Term
from contrastive_zoo.ring import passes
from contrastive_zoo.ring.course import Course
from contrastive_zoo.ring.passing import Ring

TAKEN_IN_RING = f"{TAKEN}, str backend, str group, int[] rows, int rounds"
_WORDS = WORDS + 4


def _unpacked(taken: Sequence[Any]) -> tuple[Course, str]:
    *given, backend, group, rows, rounds = taken
    sweep, term = unpack(given)
    return Course(Ring(group, sweep.part[0], tuple(rows)), rounds, sweep, term), backend


@operator("contrastive_zoo::ring", f"({TAKEN_IN_RING}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)")
def ring_operator(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of rows, sums of keys and means over the pairs that this process visits, and what the backward pass needs."""
    *given, needs = taken
    sums, kept = passes.forward(*_unpacked(given), tuple(needs))
    return *sums, kept


@ring_operator.register_fake
def _(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *given, needs = taken
    course, backend = _unpacked(given)
    return *passes.Totals(course).finished(), course.sweep.x.new_empty(passes.kept_numel(course, backend, tuple(needs)))


@operator(
    "contrastive_zoo::ring_backward",
    f"({TAKEN_IN_RING}, Tensor sums, Tensor key_sums, Tensor kept, Tensor grad_sums, Tensor grad_key_sums, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def ring_operator_backward(*taken: Any) -> Gradients:
    """Gradients of x, keys, scale and offset; empty for an input that needs no gradient."""
    *given, rows, columns, kept, grad_rows, grad_columns, needs = taken
    course, backend = _unpacked(given)
    if course.symmetric:
        columns, grad_columns = rows, grad_rows
    by_set = [each if course.sweep.x.dim() == 3 else each.unsqueeze(1) for each in (rows, columns, grad_rows, grad_columns)]
    found = passes.Backward(course, backend, tuple(needs), by_set[:2], by_set[2:], kept).gradients()
    gradients = [each.to(old) if need else each.new_empty(0) for each, old, need in zip(found, given, needs, strict=False)]
    return Gradients(*gradients)


@ring_operator_backward.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    x, needs = taken[0], taken[-1]
    return tuple(
        each.new_empty(each.shape) if need and each is not None else x.new_empty(0)
        for each, need in zip(taken[:4], needs, strict=True)
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    tensors, ctx.words = inputs[:TENSORS], inputs[TENSORS : TENSORS + _WORDS]
    rows, columns, means, kept = output
    ctx.save_for_backward(*tensors, rows, columns, kept)
    ctx.mark_non_differentiable(means, kept)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, *_: Any) -> Any:
    if grad_rows is None and grad_columns is None:
        return (None,) * (TENSORS + _WORDS + 1)
    *given, rows, columns, kept = ctx.saved_tensors
    grads = [torch.zeros_like(sums) if grad is None else grad for sums, grad in ((rows, grad_rows), (columns, grad_columns))]
    needs = list(ctx.needs_input_grad[:4])
    found = compute(*given, *ctx.words, rows, columns, kept, *grads, needs)
    gradients = [each if need else None for each, need in zip(found, needs, strict=True)]
    return *gradients, *(None,) * (TENSORS - 4 + _WORDS + 1)


ring_operator.differentiate(ring_operator_backward, _setup, _gradient)


def compute(sweep: Sweep, term: Term, name: str, group: str, rows: Sequence[int], rounds: int) -> Sums:
    """The sums over the pairs that this process visits, for the rows and keys of all processes; see `Course`."""
    packed, enabled = pack(sweep, term), torch.is_grad_enabled()
    needs = [enabled and tensor is not None and tensor.requires_grad for tensor in packed[:4]]
    *sums, _ = ring_operator(*packed, name, group, list(rows), rounds, needs)
    return Sums(*sums).without_axis()
