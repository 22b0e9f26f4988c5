"""The readable reference: builds the whole matrix with plain autograd; differentiable any number of times.

It takes few calls, so "auto" uses it for small matrices on the host, where calls take more time than arithmetic.

Shapes: N rows `x`, or G sets of N rows, M rows `keys`, D features, K scales.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.devices import beside, cached_on_host, transforming
from contrastive_zoo.logspace import in_vectors, log1p_exp, masked_logsumexp
from contrastive_zoo.operators import without_autocast
from contrastive_zoo.pairwise.kernels import distance_floor, get_kernel
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import LOGIT_LIMIT, KernelSum, LogSumExp, Softplus, Squares, Sums, Term

# Up to so many pairs of a set of rows and keys the matrix takes less time than the loop over tiles, on one core or two, or, for
# squares, than the Gram matrix.
SMALL_PAIRS = 2**16
SMALL_PAIRS_OF_SQUARES = 2**14


def refuses_unasked(sweep: Sweep, term: Term) -> str:
    """The reason why "auto" does not build the matrix; empty if it does."""
    if not sweep.x.is_cpu or torch.compiler.is_compiling() or isinstance(term, KernelSum):
        return "on accelerators, in compiled code and for kernels it takes more time"
    if _in_groups(sweep, term):
        return ""
    pairs = sweep.x.shape[-2] * _keys(sweep).shape[-2]
    large = pairs > (SMALL_PAIRS_OF_SQUARES if isinstance(term, Squares) else SMALL_PAIRS)
    return "the matrix of pairs is too large" if large else ""


def forward(sweep: Sweep, term: Term) -> Sums:
    """The sums of a sweep over all its pairs; sums for the keys too of log-sum-exps."""
    if isinstance(term, LogSumExp):
        return _logsumexp(sweep, term)
    if isinstance(term, Softplus) and _in_groups(sweep, term):
        return _within_groups(sweep, term)
    values, excluded = _values(similarities(sweep.x, sweep.keys), sweep.x, term), _excluded(sweep)
    rows = (values if excluded is None else values.masked_fill(excluded, 0)).sum(-1)
    return Sums(rows, rows.new_empty(0), rows.new_empty(0))


def _in_groups(sweep: Sweep, term: Term) -> bool:
    """Whether only pairs of neighbours with ids 0, 0, ..., 1, 1, ... count, which takes a small matrix for each id."""
    return sweep.counts == "equal" and sweep.group > 0 and sweep.keys is None and isinstance(term, Softplus)


def _within_groups(sweep: Sweep, term: Softplus) -> Sums:
    """The sums over each group of rows as a set of rows of its own."""
    groups = replace(sweep, x=sweep.x.unflatten(0, (-1, sweep.group)), ids=None, counts="different", group=0)
    rows = forward(groups, replace(term, bias=term.bias.unflatten(0, (-1, sweep.group)))).rows.flatten()
    return Sums(rows, rows.new_empty(0), rows.new_empty(0))


def _keys(sweep: Sweep) -> Tensor:
    return sweep.x if sweep.keys is None else sweep.keys


def _seen_through() -> bool:
    """Whether something that differentiates or compiles operations of PyTorch only is at work."""
    return torch.compiler.is_compiling() or transforming()


def similarities(x: Tensor, keys: Tensor | None) -> Tensor:
    """(..., N, M) inner products of rows (..., N, D) with keys (..., M, D), or with each other, which autocast leaves alone."""
    if _seen_through():
        return x @ (x if keys is None else keys).mT
    found: Tensor = _Similarities.apply(x, keys)
    return found


def _group(sweep: Sweep) -> int:
    """How often each id is repeated if ids are known to be 0, 0, ..., 1, 1, ... and exclude pairs; else 0."""
    if sweep.counts == "equal":
        return 0
    return sweep.group or int(sweep.keys is None and sweep.ids is None)


def _excluded(sweep: Sweep) -> Tensor | None:
    """(N, M) mask of the excluded pairs; None if there are none."""
    x, ids = sweep.x, sweep.ids
    rows, columns = x.shape[-2], _keys(sweep).shape[-2]
    if group := _group(sweep):
        return beside((_kept_groups if rows * columns <= SMALL_PAIRS else _groups)(rows, columns, group), x)
    if ids is None:
        return None
    equal = ids.to(x.device).unsqueeze(1) == (ids if sweep.key_ids is None else sweep.key_ids).to(x.device)
    if sweep.counts == "different":
        return equal
    return ~equal if sweep.keys is not None else ~equal | torch.eye(rows, dtype=torch.bool, device=x.device)


def _groups(rows: int, columns: int, group: int) -> Tensor:
    """(N, M) mask of the pairs with equal ids, which are 0, 0, ..., 1, 1, ..."""
    ids, key_ids = (torch.arange(number, device="cpu") // group for number in (rows, columns))
    return ids.unsqueeze(1) == key_ids


_kept_groups = cached_on_host(_groups)


@cached_on_host
def _barrier(rows: int, columns: int, group: int, dtype: torch.dtype) -> Tensor:
    """(N, M) logits of the excluded pairs, -inf, and 0 for all others."""
    return torch.zeros(rows, columns, dtype=dtype, device="cpu").masked_fill_(_groups(rows, columns, group), -torch.inf)


class _Similarities(torch.autograd.Function):
    """Products of rows with keys, or with each other, in their own precision in the backward pass too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor | None) -> Tensor:
        """(N, M) or (G, N, M)."""
        ctx.save_for_backward(x, keys)
        ctx.save_for_forward(x, keys)
        return x @ (x if keys is None else keys).mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """In operations that can be differentiated again."""
        with without_autocast(grad):
            return _spread(grad, ctx.saved_tensors, ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, keys: Tensor | None) -> Tensor:
        """Forward-mode differentiation."""
        return _tangent(ctx.saved_tensors, (x, keys))


class _Exponentials(torch.autograd.Function):
    """Exponentials of bounded logits: one call multiplies, scales and excludes; see `_Similarities`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor | None, barrier: Tensor, scale: float) -> Tensor:
        """(N, M) or (G, N, M); ``barrier`` is added to the logits."""
        multiply = torch.addmm if x.dim() == 2 else torch.baddbmm
        e = multiply(barrier, x, (x if keys is None else keys).mT, alpha=scale).exp_()
        ctx.scale = scale
        ctx.save_for_backward(x, keys, e)
        ctx.save_for_forward(x, keys, e)
        return e

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """In operations that can be differentiated again."""
        *rows, e = ctx.saved_tensors
        with without_autocast(grad):
            return *_spread((grad * e).mul(ctx.scale), rows, ctx.needs_input_grad), None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, keys: Tensor | None, *_: None) -> Tensor:
        """Forward-mode differentiation."""
        *rows, e = ctx.saved_tensors
        return _tangent(rows, (x, keys)) * e * ctx.scale


def _spread(slopes: Tensor, rows: Sequence[Any], needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of rows and keys from those of their products."""
    x, keys = rows
    if keys is None:
        return (slopes + slopes.mT) @ x, None
    return slopes @ keys if needs[0] else None, slopes.mT @ x if needs[1] else None


def _tangent(rows: Sequence[Any], tangents: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Tangent of the products of rows with keys."""
    (x, keys), (of_x, of_keys) = rows, tangents
    if keys is None:
        keys, of_keys = x, of_x
    of_rows = torch.zeros_like(x) if of_x is None else of_x
    return of_rows @ keys.mT if of_keys is None else of_rows @ keys.mT + x @ of_keys.mT


def _logsumexp(sweep: Sweep, term: LogSumExp) -> Sums:
    x, keys, group = sweep.x, _keys(sweep), _group(sweep)
    number, of_keys = x.shape[-2], keys.shape[-2]
    all_have_keys = min(number, of_keys) > group if group else sweep.keys is not None and sweep.ids is None
    bounded = all_have_keys and term.largest * sweep.norm_bound**2 <= LOGIT_LIMIT[x.dtype]
    single = len(term.scale) == 1  # for all rows, or one for each row
    columns = means = x.new_empty(0)
    at_once = bounded and group and single and not term.mean and (term.constants or sweep.keys is not None)
    if at_once and number * of_keys <= SMALL_PAIRS and not _seen_through():
        barrier = _barrier(number, of_keys, group, x.dtype)
        rows, scale = (x, term.constants[0]) if term.constants else (x * term.scale.to(x).mT, 1.0)
        e = _Exponentials.apply(rows, sweep.keys, barrier if x.is_cpu else beside(barrier, x), scale)
        return Sums(e.sum(-1).log(), e.sum(-2).log() if sweep.both else columns, means)
    similarity, excluded = similarities(sweep.x, sweep.keys), _excluded(sweep)
    scales = term.scale.to(similarity).unsqueeze(-1)  # (K, N or 1, 1)
    scales = scales.squeeze(0) if single else scales if x.dim() == 2 else scales.unsqueeze(1)
    logits = scales * similarity  # (K, N, M) or (K, G, N, M), without the first axis for one scale
    logits = logits if excluded is None else logits.masked_fill(excluded, -torch.inf)
    if bounded:  # no maximum is needed, and rows and keys share the exponentials
        e = logits.exp()
        rows, columns = e.sum(-1).log(), e.sum(-2).log() if sweep.both else columns
    else:
        total = partial(torch.logsumexp, dim=-1) if all_have_keys else masked_logsumexp
        rows, columns = total(logits), total(logits.mT) if sweep.both else columns
    if term.mean:
        weights = (logits.detach() - rows.detach().masked_fill(rows == -torch.inf, 0).unsqueeze(-1)).exp()
        means = (weights * similarity.detach()).sum(-1)
    return Sums(rows, columns, means)


def _values(similarity: Tensor, x: Tensor, term: Term) -> Tensor:
    """What is summed, for every pair."""
    if isinstance(term, Softplus):
        logits = term.scale.to(similarity) * similarity + term.bias.unsqueeze(-1)
        return log1p_exp(in_vectors(logits)).to(logits)
    if isinstance(term, KernelSum):
        return _kernel(similarity, x, term)
    if isinstance(term, Squares):
        return similarity.square()
    raise TypeError(f"dense has no formula for {type(term).__name__}. Add it to _values.")


def _kernel(similarity: Tensor, x: Tensor, term: KernelSum) -> Tensor:
    norms = term.squared_norms
    if norms is None:
        distances, floor = 2 - 2 * similarity, distance_floor(term.kernel, x, term.rounding)
    else:
        both = norms[..., :, None] + norms[..., None, :]
        distances, floor = both - 2 * similarity, distance_floor(term.kernel, x, term.rounding, both.detach() / 2)
    return get_kernel(term.kernel).floored(distances, floor, term.parameter)
