"""All sweeps as one pair of operators: opaque to `torch.compile`, differentiable once, unaffected by autocast.

An operator takes a sweep and a term as tensors, a name and numbers; `pack` and `unpack` convert between the two forms.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.pairwise.backends import BACKENDS, choose
from contrastive_zoo.pairwise.sweep import HALF, Bound, Sweep
from contrastive_zoo.pairwise.terms import TERMS, Gradients, Packed, Sums, Term

TAKEN = (
    "Tensor x, Tensor? keys, Tensor? scale, Tensor? offset, Tensor? ids, Tensor? key_ids, Tensor? rounded,"
    " Tensor? rounded_keys, str term, float[] numbers, float norm_bound, int[] layout"
)
TENSORS, WORDS = 8, 4  # of TAKEN
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
def sweep_operator(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of rows, sums of columns, means, and the entries kept for the backward pass."""
    *packed, name, needs = taken
    forward = BACKENDS[name].forward
    assert forward is not None
    sums, kept = forward(*unpack(packed), tuple(needs))
    return *sums, kept


@sweep_operator.register_fake
def _(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *packed, name, needs = taken
    residual = BACKENDS[name].residual
    assert residual is not None
    sweep, term = unpack(packed)
    x, (*_, sums, has_means) = sweep.x, term.packed()
    keys = 0 if sweep.keys is None or not sweep.both else sweep.keys.shape[0]
    rows = x.new_empty(sums, *x.shape[:-1])
    means = torch.empty_like(rows) if has_means else x.new_empty(sums, *x.shape[:-2], 0)
    return rows, x.new_empty(sums, keys), means, x.new_empty(residual(sweep, term, tuple(needs)))


@operator(
    "contrastive_zoo::sweep_backward",
    f"({TAKEN}, str backend, Tensor rows, Tensor columns, Tensor means, Tensor kept, Tensor grad_rows, Tensor grad_columns,"
    " bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)
def sweep_operator_backward(*taken: Any) -> Gradients:
    """Gradients of x, keys, scale and offset; empty for an input that needs no gradient."""
    *packed, backend, rows, columns, means, kept, grad_rows, grad_columns, needs = taken
    backward = BACKENDS[backend].backward
    assert backward is not None
    sums, upstream = Sums(rows, columns, means), (grad_rows, grad_columns)
    sweep, term = unpack(packed)
    found = backward(sweep, term, sums, upstream, kept, tuple(needs))
    gradients = [each.to(given) if need else each.new_empty(0) for each, given, need in zip(found, packed, needs, strict=False)]
    return Gradients(*gradients)


@sweep_operator_backward.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    given, needs = taken[:4], taken[-1]
    x = taken[0]
    return tuple(
        each.new_empty(each.shape) if need and each is not None else x.new_empty(0)
        for each, need in zip(given, needs, strict=True)
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    tensors, ctx.words = inputs[:TENSORS], inputs[TENSORS : TENSORS + WORDS + 1]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, *_: Any) -> Any:
    if grad_rows is None and grad_columns is None:
        return (None,) * (TENSORS + WORDS + 2)
    *given, rows, columns, means, kept = ctx.saved_tensors
    grads = [
        sums.new_zeros(sums.shape) if grad is None else grad for sums, grad in ((rows, grad_rows), (columns, grad_columns))
    ]
    needs = list(ctx.needs_input_grad[:4])
    found = compute(*given, *ctx.words, rows, columns, means, kept, *grads, needs)
    gradients = [each if need else None for each, need in zip(found, needs, strict=True)]
    return *gradients, *(None,) * (TENSORS + WORDS - 2)


sweep_operator.differentiate(sweep_operator_backward, _setup, _gradient)


def compute(sweep: Sweep, term: Term, name: str) -> Sums:
    """The sums of a sweep, computed by the named backend.

    Raises:
        ValueError: The backend is unknown, or cannot compute the sweep.
    """
    backend = choose(sweep, term, name)
    if backend.plain is not None:
        return backend.plain(sweep, term)
    packed, enabled = pack(backend.prepare(sweep), term), torch.is_grad_enabled()
    needs = [enabled and tensor is not None and tensor.requires_grad for tensor in packed[:4]]
    *sums, _ = sweep_operator(*packed, backend.name, needs)
    return Sums(*sums)
