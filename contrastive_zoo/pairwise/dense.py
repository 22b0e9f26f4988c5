"""The readable reference: builds the whole matrix with plain autograd; differentiable any number of times.

It takes few calls, so "auto" uses it for small matrices on the host, where calls take more time than arithmetic.

Shapes: N rows `x`, or G sets of N rows, M rows `keys`, D features, K scales.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from contrastive_zoo.devices import beside, cached_on_host
from contrastive_zoo.logspace import in_vectors, log1p_exp, masked_logsumexp
from contrastive_zoo.pairwise.kernels import distance_floor, get_kernel
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import LOGIT_LIMIT, KernelSum, LogSumExp, Softplus, Squares, Sums, Term

# Up to so many pairs of rows and keys the matrix takes less time than the loop over tiles, on one core or two. Where rows are
# their own keys, the loop visits each pair once, so it wins from half as many on, and from fewer if rows are wide.
SMALL_PAIRS = 2**16
SMALL_WORK = 2**22


def refuses_unasked(sweep: Sweep, term: Term) -> str:
    """The reason why "auto" does not build the matrix; empty if it does."""
    x = sweep.x
    if _in_groups(sweep, term) and x.is_cpu and not torch.compiler.is_compiling():
        return ""
    if not x.is_cpu or not isinstance(term, (LogSumExp, Softplus)) or torch.compiler.is_compiling():
        return "a matrix of pairs takes less time for exponentials on the host only"
    if sweep.operand is not None:
        return "a backward pass under autocast would multiply in half precision"
    work, twice = x.numel() * _keys(sweep).shape[-2], sweep.keys is None
    large = work > SMALL_PAIRS * x.shape[-1] >> twice or (twice and work > SMALL_WORK)
    return "the matrix of pairs is too large" if large else ""


def forward(sweep: Sweep, term: Term) -> Sums:
    """The sums of a sweep over all its pairs."""
    if isinstance(term, LogSumExp):
        return _logsumexp(sweep, term)
    if isinstance(term, Softplus) and _in_groups(sweep, term):
        return _within_groups(sweep, term)
    values, excluded = _values(sweep.x @ _keys(sweep).mT, sweep.x, term), _excluded(sweep)
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
    return ~equal if sweep.keys is not None else equal.logical_not_().fill_diagonal_(True)


def _groups(rows: int, columns: int, group: int) -> Tensor:
    """(N, M) mask of the pairs with equal ids, which are 0, 0, ..., 1, 1, ..."""
    ids, key_ids = (torch.arange(number, device="cpu") // group for number in (rows, columns))
    return ids.unsqueeze(1) == key_ids


_kept_groups = cached_on_host(_groups)


@cached_on_host
def _barrier(rows: int, columns: int, group: int, dtype: torch.dtype) -> Tensor:
    """(N, M) logits of the excluded pairs, -inf, and 0 for all others."""
    return torch.zeros(rows, columns, dtype=dtype, device="cpu").masked_fill_(_groups(rows, columns, group), -torch.inf)


def _logsumexp(sweep: Sweep, term: LogSumExp) -> Sums:
    x, keys, group = sweep.x, _keys(sweep), _group(sweep)
    rows_of, columns_of = x.shape[-2], keys.shape[-2]
    all_have_keys = min(rows_of, columns_of) > group if group else sweep.keys is not None and sweep.ids is None
    bounded = all_have_keys and term.largest * sweep.norm_bound**2 <= LOGIT_LIMIT[x.dtype]
    one = len(term.scale) == 1
    if bounded and group and one and not term.mean and rows_of * columns_of <= SMALL_PAIRS:
        # One call multiplies and excludes, and scales too if it can.
        barrier, multiply = _barrier(rows_of, columns_of, group, x.dtype), torch.addmm if x.dim() == 2 else torch.baddbmm
        scaled, alpha = (x, term.numbers[0]) if term.numbers else (x * term.scale.to(x.dtype).mT, 1.0)
        similarity = logits = multiply(barrier if x.is_cpu else beside(barrier, x), scaled, keys.mT, alpha=alpha)
    else:
        similarity, excluded = x @ keys.mT, _excluded(sweep)  # (N, M) or (G, N, M)
        scale = term.scale.to(similarity).unsqueeze(-1)  # (K, N or 1, 1)
        scale = scale.squeeze(0) if one else scale if x.dim() == 2 else scale.unsqueeze(1)
        logits = scale * similarity  # (K, N, M) or (K, G, N, M), without the first axis for one scale
        logits = logits if excluded is None else logits.masked_fill(excluded, -torch.inf)
    columns = means = x.new_empty(0)
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
