"""All sweeps as one operator: differentiable once, unaffected by autocast, opaque to `torch.compile`.

An operator takes a sweep and a term as tensors, a name and numbers; `pack` and `unpack` convert between the two forms.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

from contrastive_zoo.operators import Operator, operator, without_autocast
from contrastive_zoo.pairwise.backends import BACKENDS, choose
from contrastive_zoo.pairwise.sweep import HALF, Bound, Sweep
from contrastive_zoo.pairwise.terms import TERMS, Packed, Sums, Term

TAKEN = (
    "Tensor x, Tensor? keys, Tensor? scale, Tensor? offset, Tensor? ids, Tensor? key_ids, Tensor? rounded,"
    " Tensor? rounded_keys, str term, float[] numbers, float norm_bound, int[] layout"
)
TENSORS = 8  # of TAKEN; the first four may need a gradient
SUMS = "Tensor rows, Tensor columns, Tensor means, Tensor kept, Tensor grad_rows, Tensor grad_columns"
OPERANDS = (None, *HALF)


def pack(sweep: Sweep, term: Term) -> tuple[Any, ...]:
    """The first arguments of an operator: `TAKEN`."""
    scale, offset, numbers, *_ = term.packed()
    operand = OPERANDS.index(sweep.operand)
    layout = [int(sweep.counts == "equal"), int(sweep.both), *sweep.part, sweep.group, operand, int(sweep.ordered)]
    tensors = sweep.x, sweep.keys, scale, offset, sweep.ids, sweep.key_ids, sweep.bound.rounded, sweep.bound.rounded_keys
    return *tensors, type(term).__name__, numbers, sweep.norm_bound, layout


def unpack(packed: Sequence[Any]) -> tuple[Sweep, Term]:
    """The sweep and the term again."""
    x, keys, scale, offset, ids, key_ids, *rounded, name, numbers, norm_bound, layout = packed
    equal, both, part, parts, group, operand, ordered = layout
    counts: Literal["different", "equal"] = "equal" if equal else "different"
    bound = Bound(norm_bound, OPERANDS[operand], *rounded)
    sweep = Sweep(x, keys, ids, key_ids, counts, bool(both), (part, parts), group, bound, bool(ordered))
    return sweep, TERMS[name].unpacked(Packed(scale, offset, numbers))


@operator("contrastive_zoo::sweep", f"({TAKEN}, str backend, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)")
def sweep_operator(*taken: Any) -> tuple[Tensor, ...]:
    """Sums of rows, sums of columns, means, and the entries kept for the backward pass."""
    *packed, name, needs = taken
    sweep, term = unpack(packed)
    forward = BACKENDS[name].forward
    assert forward is not None
    with without_autocast(sweep.x):
        sums, kept = forward(sweep, term, tuple(needs))
    return *sums.without_axis(), kept


@sweep_operator.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    *packed, name, needs = taken
    residual = BACKENDS[name].residual
    assert residual is not None
    sweep, term = unpack(packed)
    x, (*_, sums, has_means) = sweep.x, term.packed()
    keys = 0 if sweep.keys is None or not sweep.both else sweep.keys.shape[0]
    rows = x.new_empty(sums, *x.shape[:-1])
    means = torch.empty_like(rows) if has_means else x.new_empty(sums, *x.shape[:-2], 0)
    found = Sums(rows, x.new_empty(sums, keys), means).without_axis()
    return *found, x.new_empty(residual(sweep, term, tuple(needs)))


@operator(
    "contrastive_zoo::sweep_backward",
    f"({TAKEN}, str backend, {SUMS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)
def sweep_operator_backward(*taken: Any) -> tuple[Tensor, ...]:
    """Gradients of x, keys, scale and offset; empty for an input that needs no gradient."""
    *packed, name, rows, columns, means, kept, grad_rows, grad_columns, needs = taken
    (sweep, term), backward = unpack(packed), BACKENDS[name].backward
    assert backward is not None
    scales = term.packed().sums
    sums, upstream = (Sums(*each, means).with_axis(scales) for each in ((rows, columns), (grad_rows, grad_columns)))
    with without_autocast(rows):
        found = backward(sweep, term, sums, upstream[:2], kept, tuple(needs))
    return tuple(each.to(old) if need else rows.new_empty(0) for each, old, need in zip(found, taken, needs, strict=False))


def gradients_like(*taken: Any) -> tuple[Tensor, ...]:
    """Gradients without values of the first four arguments of an operator; empty for an input that needs no gradient."""
    x, needs = taken[0], taken[-1]
    return tuple(
        each.new_empty(each.shape) if need and each is not None else x.new_empty(0)
        for each, need in zip(taken[:4], needs, strict=True)
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.words = inputs[TENSORS:-1]
    ctx.save_for_backward(*inputs[:TENSORS], *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, *_: Any) -> Any:
    others = (None,) * (TENSORS - 4 + len(ctx.words) + 1)
    if grad_rows is None and grad_columns is None:
        return None, None, None, None, *others
    *given, rows, columns, means, kept = ctx.saved_tensors
    grads = [torch.zeros_like(sums) if grad is None else grad for sums, grad in ((rows, grad_rows), (columns, grad_columns))]
    needs = list(ctx.needs_input_grad[:4])
    found = compute(*given, *ctx.words, rows, columns, means, kept, *grads, needs)
    return *(each if need else None for each, need in zip(found, needs, strict=True)), *others


def differentiate(forward: Operator, backward: Operator) -> None:
    """Give an operator that takes `TAKEN`, words and needs a gradient by an operator that takes `SUMS` before the needs."""
    backward.register_fake(gradients_like)
    forward.differentiate(backward, _setup, _gradient, returned=itemgetter(slice(3)))


differentiate(sweep_operator, sweep_operator_backward)


def needed(packed: Sequence[Any]) -> list[bool]:
    """Which of the first four arguments of an operator need a gradient."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in packed[:4]]


def compute(sweep: Sweep, term: Term, name: str) -> Sums:
    """The sums of a sweep, computed by the named backend, without the axis of scales if there is one scale.

    Raises:
        ValueError: The backend is unknown, or cannot compute the sweep.
    """
    backend = choose(sweep, term, name)
    if backend.plain is not None:
        with without_autocast(sweep.x):
            return backend.plain(sweep, term)
    packed = pack(backend.prepare(sweep), term)
    return Sums(*sweep_operator(*packed, backend.name, needed(packed))[:3])
