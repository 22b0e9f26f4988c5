"""Log-sum-exps over a small matrix, without the loop over tiles: in a small batch every call counts.

Shapes: N rows `x`, M rows `keys`, D features, K scales.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Sums, Term
from contrastive_zoo.pairwise.tiled.terms import LOGIT_LIMIT, over_sum
from contrastive_zoo.pairwise.tiled.tiles import fill_groups

# Up to so many exponentials the loop takes more time than the matrix; above, new memory does. The loop takes longer for an
# exponential of several scales, so the matrix may hold more of them.
SMALL_NUMEL = 2**16
MORE_FOR_SCALES = 2


def serves(sweep: Sweep, term: Term) -> bool:
    """Whether a sweep is a small matrix of bounded logits, whose excluded pairs lie on its diagonal."""
    x, keys = sweep.x, sweep.keys
    if not isinstance(term, LogSumExp) or x.dim() == 3 or sweep.part[1] > 1 or sweep.counts == "equal":
        return False
    if sweep.both and not _one(term):
        return False
    if not x.is_cpu or not term.scale.is_cpu or (sweep.ids is not None and not sweep.group):
        return False
    rows, columns, scale = x.shape[0], x.shape[0] if keys is None else keys.shape[0], term.scale
    limit = SMALL_NUMEL * MORE_FOR_SCALES if scale.shape[0] > 1 else SMALL_NUMEL
    if scale.shape[0] * rows * columns > limit or (sweep.group and (rows != columns or rows % sweep.group)):
        return False
    largest = abs(scale.item()) if scale.numel() == 1 else scale.abs().max().item() if scale.numel() else 0.0
    return largest * sweep.norm_bound**2 <= LOGIT_LIMIT[x.dtype]


def forward(sweep: Sweep, term: LogSumExp) -> tuple[Sums, Tensor]:
    """The sums; and the exponentials, or the similarities if there are several scales, for the backward pass."""
    similarity, e = _exponentials(sweep, term, sweep.x.new_empty(0))
    rows, means = e.sum(2), e.new_empty(len(e), 0)
    if term.mean:
        means = (e * similarity).sum(2) / rows.masked_fill(rows == 0, 1)
    columns = e.sum(1).log_() if sweep.both else e.new_empty(len(e), 0)
    return Sums(rows.log_(), columns, means), (e if _one(term) else similarity).view(-1)


def _one(term: LogSumExp) -> bool:
    """Whether all rows have one and the same scale."""
    return term.scale.numel() == 1 and not term.mean


def _exponentials(sweep: Sweep, term: LogSumExp, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M) similarities, which one scale alone does not need, and (K, N, M) exponentials of the logits, 0 if excluded."""
    x, keys = sweep.x, sweep.x if sweep.keys is None else sweep.keys
    group = sweep.group or int(sweep.keys is None)
    if _one(term):
        if kept.numel():
            return kept, kept.view(1, len(x), len(keys))
        e = x.new_empty(len(x), len(keys))
        torch.addmm(e, x, keys.T, beta=0, alpha=term.scale.item() * LOG2_E, out=e).exp2_()
        return e, (fill_groups(e, group, 0) if group else e).unsqueeze(0)
    similarity = kept.view(len(x), len(keys)) if kept.numel() else x @ keys.T
    exponentials = ((term.scale.to(x) * LOG2_E).unsqueeze(2) * similarity).exp2_()
    for e in exponentials if group else ():
        fill_groups(e, group, 0)
    return similarity, exponentials


def backward(
    sweep: Sweep, term: LogSumExp, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs
) -> Gradients:
    """Gradients of rows, keys and scale, as far as they are needed."""
    x, keys, empty = sweep.x, sweep.x if sweep.keys is None else sweep.keys, sweep.x.new_empty(0)
    similarity, e = _exponentials(sweep, term, kept)
    shared, one = term.scale.shape[1] == 1, _one(term)
    of_rows, of_keys = over_sum(upstream[0], sums.rows), over_sum(upstream[1], sums.columns) if sweep.both else None
    # One scale multiplies the finished gradients.
    scaled = of_rows if one else of_rows * term.scale.to(x)
    # Every row is a key too, and with the same scale for all rows the matrix of exponentials is symmetric.
    slopes = _times(e, scaled, scaled if sweep.keys is None and shared else of_keys)
    slope = slopes[0] if len(slopes) == 1 else slopes.sum(0)
    if sweep.keys is None and not shared:
        slope = slope + slope.T
    grad_x = slope @ keys if needs[0] or (one and needs[2] and not needs[1]) else empty
    grad_keys = slope.T @ x if needs[1] else empty
    grad_scale = empty
    if needs[2] and term.mean:
        grad_scale = upstream[0] * sums.means
    elif needs[2] and one:
        total = (grad_x * x).sum() if grad_x.numel() else (grad_keys * keys).sum()
        grad_scale = (total / 2 if sweep.keys is None else total).reshape(1, 1)
    elif needs[2]:
        each = (of_rows.unsqueeze(2) * e).mul_(similarity).sum(2)
        grad_scale = each.sum(1, keepdim=True) if shared else each
    if one:
        for gradient in (grad_x, grad_keys):
            if gradient.numel():
                gradient.mul_(term.scale.item())
    return Gradients(grad_x, grad_keys, grad_scale, empty)


def _times(e: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """(K, N, M) exponentials times a number of the row plus, if there is one, a number of the column."""
    factors = rows.unsqueeze(2)
    return factors * e if columns is None else (factors + columns.unsqueeze(1)).mul_(e)
