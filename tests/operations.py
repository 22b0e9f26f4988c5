"""Every operation of `pairwise`, described once: how to call it, and what it is by double loops in float64.

All generic tests go through this table and through all backends, so that an operation or a backend that is new arrives tested.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import oracle
import pytest
import torch
from cases import rows, weights
from torch import Tensor

from contrastive_zoo import pairwise


class Leaves(NamedTuple):
    """What operations are called with; each takes what it needs.

    Attributes:
        x: (N, D) rows.
        keys: (M, D) keys.
        other: (N, D) rows of another view.
        scale: A scale for all rows.
        scales: (N,) a scale for each row.
        bias: (N,) a bias for each row.
    """

    x: Tensor
    keys: Tensor
    other: Tensor
    scale: Tensor
    scales: Tensor
    bias: Tensor


def leaves(
    size: int, width: int, *, scale: float = 10.0, dtype: torch.dtype = torch.float64, unit: bool = True, seed: int = 0
) -> Leaves:
    x, keys, other = (
        rows(number, width, seed=3 * seed + view, dtype=dtype, unit=unit)
        for view, number in enumerate((size, 2 * size // 3 + 1, size))
    )
    spread = torch.linspace(0.5, 1, size, dtype=torch.float64)
    given = torch.tensor(scale, dtype=torch.float64), scale * spread, 3 * spread - 2
    # A scale stays in float64, whatever the rows are in: it is exact.
    wide = torch.promote_types(dtype, torch.float32)
    return Leaves(x, keys, other, given[0].requires_grad_(), *(t.to(wide).requires_grad_() for t in given[1:]))


IDS: dict[str, Callable[[int], Tensor] | None] = {
    "none": None,
    "views": lambda size: torch.arange(size) // 2,
    "few": lambda size: torch.arange(size) * 7 % 5 - 2,
    "equal": lambda size: torch.full((size,), 3),
    "int32": lambda size: torch.arange(size, dtype=torch.int32).flip(0) // 3,
    "alone": torch.arange,
    "one large class": lambda size: torch.arange(size).clamp(max=size // 3).flip(0),
}


class Operation(NamedTuple):
    """One way to call a function of `pairwise`.

    Attributes:
        call: From leaves, ids of rows and keys, and options (backend, part) to one tensor.
        reference: The same by double loops, from leaves and lists of ids.
        whole: From the stacked values of all parts to the value of the whole; None if the operation has no parts.
        logit: How many times as large as the scale logits are.
        within: Whether pairs with equal ids count, so that ids must be given.
        reads: The sides that get a gradient: x, and keys or other.
        empty: The value of a row without keys.
        magnitude: Size of the terms in a gradient, over that of logits at a scale of 10.
        cancels: Whether pairs that do not count are taken off again, which rounds as a sum over all rows does.
    """

    call: Callable[..., Tensor]
    reference: Callable[[Leaves, list[int], list[int] | None], Tensor]
    whole: Callable[[Tensor], Tensor] | None
    logit: float = 1.0
    within: bool = False
    reads: tuple[str, ...] = ("x",)
    empty: float = 0.0
    magnitude: float = 1.0
    cancels: bool = False

    def __call__(self, given: Leaves, kind: str = "views", **options: Any) -> Tensor:
        """The value, with ids of some kind."""
        make = IDS[kind]
        ids = (None, None) if make is None else (make(len(given.x)), make(len(given.keys)))
        return self.call(given, *ids, **options)

    def expected(self, given: Leaves, kind: str) -> Tensor:
        """What the double loops say."""
        make = IDS[kind]
        if make is None:
            return self.reference(given, list(range(len(given.x))), None)
        return self.reference(given, make(len(given.x)).tolist(), make(len(given.keys)).tolist())

    def outcome(self, given: Leaves, kind: str = "views", **options: Any) -> tuple[Tensor, ...]:
        """Value and gradients of all leaves, those that the operation does not read included."""
        return _with_gradients(self(given, kind, **options), given)

    def expected_outcome(self, given: Leaves, kind: str) -> tuple[Tensor, ...]:
        return _with_gradients(self.expected(given, kind), given)


def _with_gradients(value: Tensor, given: Leaves) -> tuple[Tensor, ...]:
    upstream = weights(*value.shape, dtype=value.dtype)
    return value.detach(), *torch.autograd.grad(value, given, upstream, materialize_grads=True)


OUTCOME = ("value", *(f"gradient of {name}" for name in Leaves._fields))


def _logsumexp_of_parts(parts: Tensor) -> Tensor:
    return parts.clamp_min(-1e4).logsumexp(0)  # a finite stand-in for -inf, through which autograd has no gradient


def _exponentials(call: Callable[..., Any], scale: Callable[[Leaves], Any], keyed: bool, logit: float = 1.0) -> Operation:
    """Log-sum-exps: one, several stacked, or rows with their means."""

    def called(t: Leaves, ids: Tensor | None, key_ids: Tensor | None, **options: Any) -> Tensor:
        tensors, identity = ((t.x, t.keys), {"ids": ids, "key_ids": key_ids}) if keyed else ((t.x,), {"ids": ids})
        value = call(*tensors, scale=scale(t), **identity, **options)
        return torch.cat(value) if isinstance(value, tuple) else value

    def reference(t: Leaves, ids: list[int], key_ids: list[int] | None) -> Tensor:
        keys, own, theirs = (t.keys, ids if key_ids else None, key_ids) if keyed else (t.x, ids, ids)
        if call is pairwise.logsumexp_both:
            both = oracle.logsumexp(t.x, keys, scale(t), own, theirs), oracle.logsumexp(keys, t.x, scale(t), theirs, own)
            return torch.cat(both)
        if call is pairwise.logsumexp_with_mean:
            sums = oracle.logsumexp(t.x, keys, scale(t), own, theirs)
            return torch.cat([sums, oracle.softmax_mean(t.x, keys, scale(t), own, theirs)])
        several = scale(t) if isinstance(scale(t), tuple) else (scale(t),)
        found = [oracle.logsumexp(t.x, keys, each, own, theirs) for each in several]
        return torch.stack(found) if isinstance(scale(t), tuple) else found[0]

    whole = None if call is pairwise.logsumexp_with_mean else _logsumexp_of_parts
    return Operation(called, reference, whole, logit, reads=("x", "keys") if keyed else ("x",), empty=-torch.inf)


def _kernel(name: str, t: float, unit: bool) -> Operation:
    def lengthened(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=1) if unit else 2 * x

    return Operation(
        lambda given, ids, _, **options: pairwise.kernel_sum(
            lengthened(given.x), kernel=name, parameter=t, ids=ids, unit_rows=unit, **options
        ),
        lambda given, ids, _: oracle.kernel_sum(lengthened(given.x), name, t, ids),
        lambda parts: parts.sum(0),
        # A squared distance is a difference, which rounds as the lengths do; riesz divides by it.
        logit=40.0 if name == "riesz" else 4.0,
        magnitude=0.5,
    )


def _softplus(times: float, pairs: str) -> Operation:
    def called(t: Leaves, ids: Tensor | None, key_ids: Tensor | None, **options: Any) -> Tensor:
        arguments = {"scale": times * t.scale, "bias": t.bias, "ids": ids, **options}
        if pairs == "within":
            return pairwise.softplus_sum_within(t.x, **arguments)
        return pairwise.softplus_sum(t.x, **arguments, **({"keys": t.keys, "key_ids": key_ids} if pairs == "keys" else {}))

    def counts(ids: list[int], key_ids: list[int] | None) -> Callable[[int, int], bool]:
        if pairs == "within":
            return lambda i, j: ids[i] == ids[j] and i != j
        return lambda i, j: ids[i] != ids[j] if pairs == "self" else key_ids is None or ids[i] != key_ids[j]

    return Operation(
        called,
        lambda t, ids, key_ids: oracle.softplus_sum(
            t.x, t.keys if pairs == "keys" else t.x, times * t.scale, t.bias.unbind(), counts(ids, key_ids)
        ),
        lambda parts: parts.sum(0),
        logit=abs(times),
        magnitude=10.0,
        within=pairs == "within",
        reads=("x", "keys") if pairs == "keys" else ("x",),
    )


def _sets(one: Operation, call: Callable[..., Tensor]) -> Operation:
    """Two sets of rows, next to each other in memory as the views of a batch, against a double loop for each."""
    return one._replace(
        call=lambda t, ids, _, **options: call(torch.stack([t.x, t.other], 1).transpose(0, 1), t, ids=ids, **options),
        reference=lambda t, ids, _: torch.stack([one.reference(t._replace(x=x), ids, None) for x in (t.x, t.other)], -2),
    )


def _one(t: Leaves) -> Tensor:
    return t.scale


def _sharp(t: Leaves) -> Tensor:
    return 20 * t.scale


_LSE, _MEAN = pairwise.logsumexp, pairwise.logsumexp_with_mean
OPERATIONS = {
    "logsumexp": _exponentials(_LSE, _one, False),
    "logsumexp, keys": _exponentials(_LSE, _one, True),
    "logsumexp, low temperature": _exponentials(_LSE, _sharp, False, 20.0),
    "logsumexp, low temperature, keys": _exponentials(_LSE, _sharp, True, 20.0),
    "logsumexp, two scales": _exponentials(_LSE, lambda t: (t.scale, -0.3 * t.scale), False),
    "logsumexp, two scales, keys": _exponentials(_LSE, lambda t: (t.scale, 0.3 * t.scale), True),
    "logsumexp, two scales, low temperature": _exponentials(_LSE, lambda t: (t.scale, 20 * t.scale), False, 20.0),
    "logsumexp, scale per row": _exponentials(_LSE, lambda t: t.scales, False),
    "logsumexp, scale per row, keys": _exponentials(_LSE, lambda t: 20 * t.scales, True, 20.0),
    "logsumexp_both": _exponentials(pairwise.logsumexp_both, _one, True),
    "logsumexp_both, low temperature": _exponentials(pairwise.logsumexp_both, _sharp, True, 20.0),
    "logsumexp_with_mean": _exponentials(_MEAN, lambda t: t.scales, False),
    "logsumexp_with_mean, low temperature": _exponentials(_MEAN, lambda t: 20 * t.scales, False, 20.0),
    "logsumexp_with_mean, keys": _exponentials(_MEAN, lambda t: t.scales, True),
    **{
        f"kernel_sum, {name}({t}), {'unit' if unit else 'any'} rows": _kernel(name, t, unit)
        for name, t in [("gaussian", 2.0), ("log", 0.7), ("imq", 0.5), ("riesz", 1.0), ("riesz", -1.5)]
        for unit in (True, False)
    },
    **{
        f"softplus_sum, {pairs}{name}": _softplus(times, pairs)
        for pairs in ("self", "keys", "within")
        for name, times in (("", 1.0), (", large logits", -30.0))
    },
    "square_sum": Operation(
        lambda t, ids, _, **options: pairwise.square_sum(t.x, t.other, ids=ids, **options),
        lambda t, ids, _: oracle.square_sum(t.x, t.other, ids),
        lambda parts: parts.sum(0),
        reads=("x", "other"),
        cancels=True,
    ),
}
OPERATIONS["logsumexp, sets"] = _sets(
    OPERATIONS["logsumexp"], lambda x, t, **options: pairwise.logsumexp(x, scale=t.scale, **options)
)
OPERATIONS["logsumexp, two scales, sets"] = _sets(
    OPERATIONS["logsumexp, two scales, low temperature"],
    lambda x, t, **options: pairwise.logsumexp(x, scale=(t.scale, 20 * t.scale), **options),
)
OPERATIONS["kernel_sum, sets"] = _sets(
    OPERATIONS["kernel_sum, imq(0.5), any rows"],
    lambda x, t, **options: pairwise.kernel_sum(2 * x, kernel="imq", parameter=0.5, **options),
)

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)

# For tests that take long: without variants that differ in numbers only, which neither a compiler nor an allocator sees.
_VARIANTS = (
    "low temperature",
    "large logits",
    "gaussian(2.0), any",
    "log(",
    "imq(0.5), unit",
    "riesz(-1.5)",
    "riesz(1.0), unit",
)
FORMS = {name: operation for name, operation in OPERATIONS.items() if not any(variant in name for variant in _VARIANTS)}
every_form = pytest.mark.parametrize("operation", FORMS.values(), ids=FORMS)
