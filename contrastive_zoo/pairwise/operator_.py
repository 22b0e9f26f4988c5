"""All sweeps as one pair of operators: opaque to `torch.compile`, differentiable once, unaffected by autocast.

A sweep and a term go through an operator as tensors, numbers and names; `_packed` and `_unpacked` are the only places that
know how.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.pairwise.backends import BACKENDS, Backend
from contrastive_zoo.pairwise.sweep import Gradients, KernelSum, LogSumExp, Softplus, Sums, Sweep, Term

COUNTS = ("different", "equal")


class _Packed(NamedTuple):
    """What an operator takes.

    Attributes:
        x: Rows.
        keys: Keys.
        scale: Scale of the term; empty if it has none.
        offset: Bias, or squared norms.
        ids: Ids of the rows.
        key_ids: Ids of the keys.
        term: Kind of the term and, of a kernel, its name.
        numbers: Bound on norms; parameter and rounding of a kernel.
        layout: Which pairs count, whether both sides are summed, the part, the group of ids, and a switch of the term.
    """

    x: Tensor
    keys: Tensor | None
    scale: Tensor
    offset: Tensor | None
    ids: Tensor | None
    key_ids: Tensor | None
    term: str
    numbers: list[float]
    layout: list[int]


def _packed(sweep: Sweep, term: Term) -> _Packed:
    scale, offset, name, numbers, switch = sweep.x.new_empty(0), None, "", [0.0, 0.0], False
    if isinstance(term, LogSumExp):
        scale, name, switch = term.scale, "logsumexp", term.mean
    elif isinstance(term, Softplus):
        scale, offset, name, switch = term.scale, term.bias, "softplus", term.uniform
    else:
        offset, name, numbers = term.squared_norms, f"kernel {term.kernel}", [term.parameter, term.rounding]
    layout = [COUNTS.index(sweep.counts), int(sweep.both), *sweep.part, sweep.group, int(switch)]
    return _Packed(sweep.x, sweep.keys, scale, offset, sweep.ids, sweep.key_ids, name, [sweep.norm_bound, *numbers], layout)


def _unpacked(packed: _Packed) -> tuple[Sweep, Term]:
    counts, both, part, parts, group, switch = packed.layout
    norm_bound, parameter, rounding = packed.numbers
    sweep = Sweep(
        packed.x,
        packed.keys,
        packed.ids,
        packed.key_ids,
        "equal" if counts else "different",
        bool(both),
        norm_bound,
        (part, parts),
        group,
    )
    if packed.term == "logsumexp":
        return sweep, LogSumExp(packed.scale, bool(switch))
    if packed.term == "softplus":
        assert packed.offset is not None
        return sweep, Softplus(packed.scale, packed.offset, bool(switch))
    return sweep, KernelSum(packed.term.removeprefix("kernel "), parameter, packed.offset, rounding)


TAKEN = (
    "Tensor x, Tensor? keys, Tensor scale, Tensor? offset, Tensor? ids, Tensor? key_ids,"
    " str term, float[] numbers, int[] layout"
)


@operator("contrastive_zoo::sweep", f"({TAKEN}, str backend, bool keep) -> (Tensor, Tensor, Tensor, Tensor)")
def sweep_operator(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of rows, of columns, means, and what is kept for the backward pass."""
    *packed, name, keep = taken
    backend = BACKENDS[name]
    assert backend.forward is not None
    assert backend.residual is not None
    sweep, term = _unpacked(_Packed(*packed))
    sums, kept = backend.forward(sweep, term, backend.residual(sweep, term) if keep else 0)
    return *sums, kept


@sweep_operator.register_fake
def _(*taken: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *packed, name, keep = taken
    residual = BACKENDS[name].residual
    assert residual is not None
    sweep, term = _unpacked(_Packed(*packed))
    x, scales = sweep.x, term.scale.shape[0] if isinstance(term, LogSumExp) else 1
    keys = 0 if sweep.keys is None or not sweep.both else sweep.keys.shape[0]
    rows = x.new_empty(scales, *x.shape[:-1])
    has_means = isinstance(term, LogSumExp) and term.mean
    means = torch.empty_like(rows) if has_means else x.new_empty(scales, *x.shape[:-2], 0)
    return rows, x.new_empty(scales, keys), means, x.new_empty(residual(sweep, term) if keep else 0)


@operator(
    "contrastive_zoo::sweep_backward",
    f"({TAKEN}, str backend, Tensor rows, Tensor columns, Tensor means, Tensor kept, Tensor grad_rows, Tensor grad_columns,"
    " bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
)
def sweep_operator_backward(*taken: Any) -> Gradients:
    """Gradients of x, keys, scale and offset, empty where none is needed."""
    *packed, backend, rows, columns, means, kept, grad_rows, grad_columns, needs = taken
    backward = BACKENDS[backend].backward
    assert backward is not None
    sums, upstream = Sums(rows, columns, means), (grad_rows, grad_columns)
    sweep, term = _unpacked(_Packed(*packed))
    found = backward(sweep, term, sums, upstream, kept, tuple(needs))
    return Gradients(
        *(each.to(given) if need else each.new_empty(0) for each, given, need in zip(found, packed, needs, strict=False))
    )


@sweep_operator_backward.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    given, needs = taken[:4], taken[-1]
    x = taken[0]
    return tuple(
        each.new_empty(each.shape) if need and each is not None else x.new_empty(0)
        for each, need in zip(given, needs, strict=True)
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    tensors, ctx.words, ctx.backend = inputs[:6], inputs[6:9], inputs[9]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, compute: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, *_: Any) -> Any:
    if grad_rows is None and grad_columns is None:
        return (None,) * 11
    *given, rows, columns, means, kept = ctx.saved_tensors
    grads = [torch.zeros_like(sums) if grad is None else grad for sums, grad in ((rows, grad_rows), (columns, grad_columns))]
    needs = list(ctx.needs_input_grad[:4])
    found = compute(*given, *ctx.words, ctx.backend, rows, columns, means, kept, *grads, needs)
    gradients = (each if need else None for each, need in zip(found, needs, strict=True))
    return *gradients, None, None, None, None, None, None, None


sweep_operator.differentiate(sweep_operator_backward, _setup, _gradient)


def compute(sweep: Sweep, term: Term, backend: Backend) -> Sums:
    """The sums of a sweep by a backend."""
    if backend.plain is not None:
        return backend.plain(sweep, term)
    assert backend.residual is not None
    packed = _packed(sweep, term)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in packed[:4])
    *sums, _ = sweep_operator(*packed, backend.name, wanted and backend.residual(sweep, term) > 0)
    return Sums(*sums)
