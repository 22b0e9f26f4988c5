"""All sweeps as one function of a sweep and a term: differentiable once, unaffected by autocast, opaque to `torch.compile`.

In compiled code it is an operator, which takes a sweep and a term as tensors, a name and numbers; `pack` and `unpack`
convert between the two forms.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

from contrastive_zoo.operators import eager_function, operator, without_autocast
from contrastive_zoo.pairwise.backends import BACKENDS, Backend, choose
from contrastive_zoo.pairwise.sweep import HALF, Bound, Sweep
from contrastive_zoo.pairwise.terms import TERMS, Needs, Packed, Sums, Term

TAKEN = (
    "Tensor x, Tensor? keys, Tensor? scale, Tensor? offset, Tensor? ids, Tensor? key_ids, Tensor? rounded,"
    " Tensor? rounded_keys, str term, float[] numbers, float norm_bound, int[] layout"
)
TENSORS, WORDS = 8, 4  # of TAKEN
_Known = tuple[Sweep, Term, Backend, Needs]
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
    return _swept(*packed[:4], *unpack(packed), BACKENDS[name], tuple(needs))


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
    f"({TAKEN}, str backend, Tensor rows, Tensor columns, Tensor means, Tensor kept, Tensor grad_rows, Tensor grad_columns,"
    " bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)
def sweep_operator_backward(*taken: Any) -> tuple[Tensor, ...]:
    """Gradients of x, keys, scale and offset; empty for an input that needs no gradient."""
    *packed, name, rows, columns, means, kept, grad_rows, grad_columns, needs = taken
    sums, upstream = Sums(rows, columns, means), (grad_rows, grad_columns)
    with without_autocast(rows):
        found = _gradients((*unpack(packed), BACKENDS[name], tuple(needs)), packed, sums, kept, upstream)
    return tuple(rows.new_empty(0) if each is None else each for each in found)


@sweep_operator_backward.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    given, needs = taken[:4], taken[-1]
    x = taken[0]
    return tuple(
        each.new_empty(each.shape) if need and each is not None else x.new_empty(0)
        for each, need in zip(given, needs, strict=True)
    )


def _swept(*given: Any) -> tuple[Tensor, ...]:
    """The results of `sweep_operator`, from the tensors that may need a gradient, sweep, term, backend and needs."""
    *_, sweep, term, backend, needs = given
    with without_autocast(sweep.x):
        sums, kept = backend.forward(sweep, term, needs)
    return *sums.without_axis(), kept


def _gradients(
    known: _Known, given: Sequence[Tensor | None], sums: Sums, kept: Tensor, upstream: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    """Gradients of x, keys, scale and offset in their dtypes; None for an input that needs none."""
    sweep, term, backend, needs = known
    assert backend.backward is not None
    scales = term.packed().sums
    sums, (rows, columns, _) = sums.with_axis(scales), Sums(*upstream, sums.means).with_axis(scales)
    found = backend.backward(sweep, term, sums, (rows, columns), kept, needs)
    return [each.to(one) if need else None for each, one, need in zip(found, given, needs, strict=False)]  # type: ignore[arg-type]


def _upstream(grad_rows: Tensor | None, grad_columns: Tensor | None, sums: Sums) -> tuple[Tensor, Tensor]:
    rows = torch.zeros_like(sums.rows) if grad_rows is None else grad_rows
    return rows, torch.zeros_like(sums.columns) if grad_columns is None else grad_columns


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    tensors, ctx.words = inputs[:TENSORS], inputs[TENSORS : TENSORS + WORDS + 1]
    _remember(ctx, tensors, output)


def _gradient(ctx: Any, compute: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, *_: Any) -> Any:
    if grad_rows is None and grad_columns is None:
        return (None,) * (TENSORS + WORDS + 2)
    *given, rows, columns, means, kept = ctx.saved_tensors
    upstream, needs = _upstream(grad_rows, grad_columns, Sums(rows, columns, means)), list(ctx.needs_input_grad[:4])
    found = compute(*given, *ctx.words, rows, columns, means, kept, *upstream, needs)
    gradients = [each if need else None for each, need in zip(found, needs, strict=True)]
    return *gradients, *(None,) * (TENSORS + WORDS - 2)


def _remember(ctx: Any, tensors: Sequence[Any], output: Any) -> None:
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.set_materialize_grads(False)


sweep_operator.differentiate(sweep_operator_backward, _setup, _gradient)


def _eager_setup(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, sweep, term, backend, needs = inputs
    ctx.known = sweep, term, backend, needs
    _remember(ctx, tensors, output)


def _eager_gradient(ctx: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, *_: Any) -> Any:
    if grad_rows is None and grad_columns is None:
        return (None,) * 8
    *given, rows, columns, means, kept = ctx.saved_tensors
    sums = Sums(rows, columns, means)
    found = _gradients(ctx.known, given, sums, kept, _upstream(grad_rows, grad_columns, sums))
    return *found, None, None, None, None


_swept_eagerly = eager_function(_swept, _eager_setup, _eager_gradient, returned=itemgetter(slice(3)))


def compute(sweep: Sweep, term: Term, name: str) -> Sums:
    """The sums of a sweep, computed by the named backend, without the axis of scales if there is one scale.

    Raises:
        ValueError: The backend is unknown, or cannot compute the sweep.
    """
    backend = choose(sweep, term, name)
    if backend.plain is not None:
        with without_autocast(sweep.x):
            return backend.plain(sweep, term)
    sweep, enabled = backend.prepare(sweep), torch.is_grad_enabled()
    scale, offset, *_ = term.packed()
    tensors = sweep.x, sweep.keys, scale, offset
    needs = tuple(enabled and tensor is not None and tensor.requires_grad for tensor in tensors)
    if torch.compiler.is_compiling():
        sums = sweep_operator(*pack(sweep, term), backend.name, list(needs))[:3]
    else:
        sums = _swept_eagerly(*tensors, sweep, term, backend, needs)
    return Sums(*sums)
