"""A log-sum-exp over a small matrix, without the loop over tiles: in a small batch every call counts.

Shapes: N rows `x`, M rows `keys`, D features.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Sums, Term
from contrastive_zoo.pairwise.tiled.terms import LOGIT_LIMIT, over_sum
from contrastive_zoo.pairwise.tiled.tiles import fill_groups

# Up to so many entries the loop takes more time than the matrix; above, new memory does.
SMALL_NUMEL = 2**16


def serves(sweep: Sweep, term: Term) -> bool:
    """Whether a sweep is a small matrix of bounded logits at one scale, whose excluded pairs lie on its diagonal."""
    x, keys = sweep.x, sweep.keys
    if not isinstance(term, LogSumExp) or term.mean or term.scale.shape != (1, 1) or x.dim() == 3 or sweep.part[1] > 1:
        return False
    if not x.is_cpu or not term.scale.is_cpu or sweep.counts == "equal" or (sweep.ids is not None and not sweep.group):
        return False
    rows, columns = x.shape[0], x.shape[0] if keys is None else keys.shape[0]
    if rows * columns > SMALL_NUMEL or (sweep.group and (rows != columns or rows % sweep.group)):
        return False
    return abs(term.scale.item()) * sweep.norm_bound**2 <= LOGIT_LIMIT[x.dtype]


def forward(sweep: Sweep, term: LogSumExp) -> tuple[Sums, Tensor]:
    """The sums, and the exponentials for the backward pass."""
    e, empty = _exponentials(sweep, term), sweep.x.new_empty
    rows = e.sum(1, keepdim=True).T.log_()
    return Sums(rows, e.sum(0, keepdim=True).log_() if sweep.both else empty(1, 0), empty(1, 0)), e.view(-1)


def _exponentials(sweep: Sweep, term: LogSumExp) -> Tensor:
    """(N, M) exponentials of the logits, 0 for excluded pairs."""
    x, keys = sweep.x, sweep.x if sweep.keys is None else sweep.keys
    e = x.new_empty(x.shape[0], keys.shape[0])
    torch.addmm(e, x, keys.T, beta=0, alpha=term.scale.item() * LOG2_E, out=e).exp2_()
    group = sweep.group or int(sweep.keys is None)
    return fill_groups(e, group, 0) if group else e


def backward(
    sweep: Sweep, term: LogSumExp, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs
) -> Gradients:
    """Gradients of rows, keys and scale, as far as they are needed."""
    x, keys, scale = sweep.x, sweep.x if sweep.keys is None else sweep.keys, term.scale.item()
    e = kept.view(x.shape[0], keys.shape[0]) if kept.numel() else _exponentials(sweep, term)
    weights = over_sum(upstream[0], sums.rows)
    if sweep.both or sweep.keys is None:
        of_keys = over_sum(upstream[1], sums.columns) if sweep.both else weights
        slopes = torch.add(weights.T, of_keys).mul_(e)
    else:
        slopes = e * weights.T
    empty = x.new_empty(0)
    grad_x = slopes @ keys if needs[0] or (needs[2] and not needs[1]) else empty
    grad_keys = slopes.T @ x if needs[1] else empty
    grad_scale = empty
    if needs[2]:
        total = (grad_x * x).sum() if grad_x.numel() else (grad_keys * keys).sum()
        grad_scale = (total / 2 if sweep.keys is None else total).reshape(1, 1)
    for gradient in (grad_x, grad_keys):
        if gradient.numel():
            gradient.mul_(scale)
    return Gradients(grad_x, grad_keys, grad_scale, empty)
