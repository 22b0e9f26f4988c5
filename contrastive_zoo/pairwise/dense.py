"""The readable reference: builds the whole matrix with plain autograd; differentiable any number of times.

Shapes: N rows `x`, or G sets of N rows, M rows `keys`, D features, K scales.
"""

import torch
from torch import Tensor

from contrastive_zoo.logspace import log1p_exp, masked_logsumexp
from contrastive_zoo.pairwise.kernels import distance_floor, get_kernel
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import KernelSum, LogSumExp, Softplus, Squares, Sums, Term


def forward(sweep: Sweep, term: Term) -> Sums:
    """The sums of a sweep over all its pairs."""
    similarity = sweep.x @ (sweep.x if sweep.keys is None else sweep.keys).mT  # (N, M) or (G, N, M)
    excluded = _excluded(sweep)  # (N, M)
    if isinstance(term, LogSumExp):
        return _logsumexp(similarity, excluded, term, sweep.both)
    rows, empty = _values(similarity, sweep.x, term).masked_fill(excluded, 0).sum(-1)[None], similarity.new_empty(1, 0)
    return Sums(rows, empty, empty)


def _values(similarity: Tensor, x: Tensor, term: Term) -> Tensor:
    """What is summed, for every pair."""
    if isinstance(term, Softplus):
        return _softplus(similarity, term)
    if isinstance(term, KernelSum):
        return _kernel(similarity, x, term)
    if isinstance(term, Squares):
        return similarity.square()
    raise TypeError(f"dense has no formula for {type(term).__name__}. Add it to _values.")


def _excluded(sweep: Sweep) -> Tensor:
    """(N, M) mask of the excluded pairs."""
    device, rows = sweep.x.device, sweep.x.shape[-2]
    own = torch.eye(rows, dtype=torch.bool, device=device)
    if sweep.ids is None:
        return own if sweep.keys is None else own.new_zeros(rows, sweep.keys.shape[0])
    others = sweep.ids if sweep.key_ids is None else sweep.key_ids
    equal = sweep.ids.to(device)[:, None] == others.to(device)[None, :]
    if sweep.counts == "different":
        return equal
    return ~equal | own if sweep.keys is None else ~equal


def _logsumexp(similarity: Tensor, excluded: Tensor, term: LogSumExp, both: bool) -> Sums:
    scale = term.scale.to(similarity)[..., None]  # (K, N or 1, 1)
    logits = (scale if similarity.dim() == 2 else scale[:, None]) * similarity  # (K, N, M) or (K, G, N, M)
    rows = masked_logsumexp(logits, excluded)
    columns = means = rows.new_empty(len(rows), 0)
    if both:
        columns = masked_logsumexp(logits.mT, excluded.T)
    if term.mean:
        weights = (logits - rows[..., None]).exp().masked_fill(excluded, 0)
        means = (weights * similarity).sum(-1).detach()
    return Sums(rows, columns, means)


def _softplus(similarity: Tensor, term: Softplus) -> Tensor:
    return log1p_exp(term.scale.to(similarity) * similarity + term.bias[:, None])


def _kernel(similarity: Tensor, x: Tensor, term: KernelSum) -> Tensor:
    norms = term.squared_norms
    if norms is None:
        distances, floor = 2 - 2 * similarity, distance_floor(term.kernel, x, term.rounding)
    else:
        both = norms[..., :, None] + norms[..., None, :]
        distances, floor = both - 2 * similarity, distance_floor(term.kernel, x, term.rounding, both.detach() / 2)
    return get_kernel(term.kernel).floored(distances, floor, term.parameter)
