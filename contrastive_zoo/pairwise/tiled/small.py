r"""Log-sum-exps and sums of softpluses over small matrices, without the loop over tiles: in a small batch every call counts.

Shapes: N rows `x`, or G sets of N rows, M rows `keys`, D features, K scales. All matrices are (N, M) or (G, N, M).
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from contrastive_zoo.logspace import in_vectors
from contrastive_zoo.pairwise.kernels import LOG2_E
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Softplus, Sums, Term
from contrastive_zoo.pairwise.tiled.terms import LOGIT_LIMIT, over_sum
from contrastive_zoo.pairwise.tiled.tiles import Sides, fill_groups

# Up to so many exponentials the loop takes more time than the matrix; above, new memory does. The loop takes longer for several
# scales and for several sets, so the matrices may hold more of them.
SMALL_NUMEL = 2**16
MORE_FOR_SEVERAL = 2


def serves(sweep: Sweep, term: Term) -> bool:
    """Whether a sweep is a small matrix on the host, of bounded logits if they are exponentiated."""
    if isinstance(term, Softplus):
        return fits(sweep) and term.scale.is_cpu
    if not isinstance(term, LogSumExp) or sweep.counts == "equal" or not term.scale.is_cpu or not fits(sweep, len(term.scale)):
        return False
    if not _one(term) and (sweep.both or sweep.x.dim() == 3):
        return False
    largest = (
        abs(term.scale.item()) if term.scale.numel() == 1 else term.scale.abs().max().item() if term.scale.numel() else 0.0
    )
    return largest * sweep.norm_bound**2 <= LOGIT_LIMIT[sweep.x.dtype]


def fits(sweep: Sweep, scales: int = 1) -> bool:
    """Whether a sweep is a small matrix on the host, whose excluded pairs the host knows."""
    x, keys, ids, key_ids = sweep.x, sweep.keys, sweep.ids, sweep.key_ids
    if not x.is_cpu or sweep.part[1] > 1:
        return False
    rows, columns = x.shape[-2], x.shape[-2] if keys is None else keys.shape[0]
    several = scales * (x.shape[0] if x.dim() == 3 else 1)
    if several * rows * columns > (SMALL_NUMEL * MORE_FOR_SEVERAL if several > 1 else SMALL_NUMEL):
        return False
    if sweep.counts == "equal":
        return ids is not None and ids.is_cpu and keys is None and x.dim() == 2
    if sweep.group:
        return rows == columns and rows % sweep.group == 0
    return ids is None or (ids.is_cpu and (key_ids is None or key_ids.is_cpu))


def forward(sweep: Sweep, term: LogSumExp | Softplus, needs: Needs) -> tuple[Sums, Tensor]:
    """The sums; and for the backward pass exponentials, similarities of several scales, sigmoids, or nothing with means."""
    if isinstance(term, Softplus):
        logits = _logits(sweep, term)
        rows, kept = softplus(in_vectors(logits), threshold=80).sum(1)[None].to(logits), logits.sigmoid_()
        columns, means = rows.new_empty(1, 0), rows.new_empty(1, 0)
    else:
        kept, e = _exponentials(sweep, term, None)
        rows, empty = e.sum(-1), (e.shape[0], 0)
        columns = e.sum(1).log_() if sweep.both else e.new_empty(empty)
        means = (e * kept).sum(-1) / rows.masked_fill(rows == 0, 1) if term.mean else e.new_empty((*rows.shape[:-1], 0))
        rows = rows.log_()
    keeps = any(needs) and not (isinstance(term, LogSumExp) and term.mean)
    return Sums(rows, columns, means), kept.view(-1) if keeps else rows.new_empty(0)


def backward(sweep: Sweep, term: LogSumExp | Softplus, sums: Sums, upstream: Sides, kept: Tensor, needs: Needs) -> Gradients:
    """Gradients of rows, keys, scale and bias, as far as they are needed."""
    found = kept.view(*sweep.x.shape[:-1], _keys(sweep).shape[-2]) if kept.numel() else None
    grad = upstream[0]
    if isinstance(term, Softplus):
        slope = (_logits(sweep, term).sigmoid_() if found is None else found) * grad.mT
        offset = slope.sum(1) if needs[3] else grad.new_empty(0)
        slope = slope + slope.mT if sweep.keys is None else slope
        return _spread(sweep, slope, term.scale, None, offset, needs)
    similarity, e = _exponentials(sweep, term, found)
    weights, columns = over_sum(grad, sums.rows), over_sum(upstream[1], sums.columns) if sweep.both else None
    one, shared = _one(term), term.scale.shape[1] == 1
    # One scale multiplies the finished gradients.
    scaled = weights if one else weights * term.scale.to(grad)
    # Every row is a key too, and with the same scale for all rows the matrix of exponentials is symmetric.
    slopes = _times(e, scaled, scaled if sweep.keys is None and shared else columns)
    slope = slopes.squeeze(0) if slopes.shape[0] == 1 else slopes.sum(0)
    if sweep.keys is None and not shared:
        slope = slope + slope.mT
    of_scale = None
    if needs[2] and not one:
        each = grad * sums.means if term.mean else (weights.unsqueeze(2) * e).mul_(similarity).sum(2)
        of_scale = each.sum(1, keepdim=True) if shared else each
    return _spread(sweep, slope, term.scale if one else None, of_scale, grad.new_empty(0), needs)


def _spread(
    sweep: Sweep, slope: Tensor, scale: Tensor | None, of_scale: Tensor | None, of_offset: Tensor, needs: Needs
) -> Gradients:
    """The gradients, from slopes that lack the factor ``scale``; ``of_scale`` is known if they lack none."""
    x, keys = sweep.x, _keys(sweep)
    of_x, of_keys, empty = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    factor = 1.0 if scale is None else scale.item()
    wants_scale = needs[2] and scale is not None
    alpha = 1.0 if wants_scale else factor
    if needs[0] or (wants_scale and not needs[1]):
        of_x = _product(slope, keys, alpha)
    if needs[1]:
        of_keys = _product(slope.mT, x, alpha)
    if needs[2] and scale is not None:
        total = (of_x * x).sum() if of_x.numel() else (of_keys * keys).sum()
        of_scale = (total / 2 if sweep.keys is None else total).reshape(scale.shape)
        of_x, of_keys = of_x.mul_(factor), of_keys.mul_(factor)
    return Gradients(of_x, of_keys, empty if of_scale is None else of_scale, of_offset)


def _keys(sweep: Sweep) -> Tensor:
    return sweep.x if sweep.keys is None else sweep.keys


def _one(term: LogSumExp) -> bool:
    """Whether all rows have one and the same scale."""
    return term.scale.numel() == 1 and not term.mean


def _exponentials(sweep: Sweep, term: LogSumExp, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is kept, and (K, N, M) or (1, G, N, M) exponentials of the logits, 0 if excluded; with one scale, they are kept."""
    if _one(term):
        if kept is None:
            kept = _exclude(sweep, _product(sweep.x, _keys(sweep).mT, term.scale.item() * LOG2_E).exp2_(), 0)
        return kept, kept.unsqueeze(0)
    similarity = _product(sweep.x, _keys(sweep).mT, 1.0) if kept is None else kept
    e = ((term.scale.to(similarity) * LOG2_E).unsqueeze(2) * similarity).exp2_()
    return similarity, _exclude(sweep, e, 0)


def _logits(sweep: Sweep, term: Softplus) -> Tensor:
    """(N, M) logits, -inf if excluded."""
    logits = _product(sweep.x, _keys(sweep).mT, term.scale.item()).add_(term.bias.unsqueeze(1))
    return _exclude(sweep, logits, -torch.inf)


def _exclude(sweep: Sweep, values: Tensor, fill: float) -> Tensor:
    """Overwrite the excluded pairs in a matrix."""
    ids = sweep.ids
    if sweep.counts == "different" and (sweep.group or ids is None):
        group = sweep.group or int(sweep.keys is None)
        return fill_groups(values, group, fill) if group else values
    assert ids is not None
    equal = ids.unsqueeze(1) == (ids if sweep.key_ids is None else sweep.key_ids)
    if sweep.counts == "different":
        return values.masked_fill_(equal, fill)
    return values.masked_fill_(~equal.fill_diagonal_(False), fill)


def _product(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """``alpha`` a @ b in one call."""
    out = a.new_empty(*a.shape[:-1], b.shape[-1])
    multiply = torch.addmm if a.dim() == 2 else torch.baddbmm
    return multiply(out, a, b, beta=0, alpha=alpha, out=out)


def _times(e: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """Exponentials times a number of the row plus, if there is one, a number of the column."""
    factors = rows.unsqueeze(-1)
    return factors * e if columns is None else (factors + columns.unsqueeze(-2)).mul_(e)
