"""The two passes of log-sum-exps.

Shapes: G sets of N rows, M keys, K scales, D features.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.fused.launch import Launches, Weighted
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Sums


def kept_sizes(sweep: Sweep, term: LogSumExp, needs: Needs) -> list[int]:
    """Number of kept entries: rounding errors of log-sum-exps of rows, of keys; mean similarities of rows, of keys.

    The mean similarity is the derivative of a log-sum-exp in its scale.
    """
    keys = sweep.keys.shape[0] if sweep.both and sweep.keys is not None else 0
    sides = [term.scale.shape[0] * sweep.x.shape[:-1].numel(), term.scale.shape[0] * keys]
    wanted = needs[0] or needs[1], needs[2] and not term.mean
    return [side if want else 0 for want in wanted for side in sides]


def _split(kept: Tensor, sweep: Sweep, term: LogSumExp, needs: Needs) -> list[Tensor | None]:
    """The kept entries; None for those that are not kept."""
    return [each if each.numel() else None for each in kept.split(kept_sizes(sweep, term, needs))]


def forward(sweep: Sweep, term: LogSumExp, needs: Needs, kept: Tensor) -> Sums:
    """The sums; what the backward pass needs goes into ``kept``."""
    launches, empty, shape = Launches(sweep, term), sweep.x.new_empty, (term.scale.shape[0], *sweep.x.shape[:-1])
    both = sweep.both and sweep.keys is not None
    sums = Sums(
        empty(shape), empty(shape[0], launches.keys.rows if both else 0), empty(shape if term.mean else (*shape[:-1], 0))
    )
    errors, column_errors, means, column_means = _split(kept, sweep, term, needs)
    means = sums.means if term.mean else means
    totals: list[list[Tensor | None]] = [[None, None], [None, None]]
    if (both or sweep.keys is None) and launches.visits_pairs_once:
        totals = _pair_sums(launches, sums, means is not None)
    launches.launch("log_sums", launches.x, launches.keys, (*totals[0], sums.rows, errors, means), {"PART": launches.x.part})
    if both:
        pointers = (*totals[1], sums.columns, column_errors, column_means)
        launches.launch("log_sums", launches.keys, launches.x, pointers, {"PART": launches.keys.part})
    return sums


def _pair_sums(launches: Launches, sums: Sums, weighted: bool) -> list[list[Tensor | None]]:
    """Sums of bounded exponentials, and sums weighted by similarities, of rows and of keys."""
    own = launches.keys is launches.x
    sizes = [sums.rows.numel(), sums.columns.numel()]
    planes = sums.rows.new_zeros(1 + weighted, sum(sizes)).unbind()
    totals: list[list[Tensor | None]] = [[None, None], [None, None]]
    for number, plane in enumerate(planes):
        for side, part in enumerate(plane.split(sizes)):
            totals[side][number] = part
    columns = totals[0] if own else totals[1]
    launches.launch("pair_sums", launches.x, launches.keys, (*totals[0], *columns), {"SELF": own})
    return totals


def backward(
    sweep: Sweep, term: LogSumExp, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs
) -> Gradients:
    """The needed gradients of rows, keys and scale."""
    empty = sweep.x.new_empty(0)
    x, keys, scale = empty, empty, empty
    errors, column_errors, means, column_means = _split(kept, sweep, term, needs)
    if needs[0] or (needs[1] and sweep.keys is not None):
        launches = Launches(sweep, term)
        weights, column_weights, top = launches.weights(sums, upstream)
        of_rows = Weighted(sums.rows, errors, weights)
        of_columns = Weighted(sums.columns, column_errors, column_weights) if sweep.both else Weighted()
        if needs[0]:
            through = of_rows, of_rows if sweep.keys is None else of_columns
            x = launches.gradient(launches.x, launches.keys, through, top)
        if needs[1] and sweep.keys is not None:
            keys = launches.gradient(launches.keys, launches.x, (of_columns, of_rows), top)
    if needs[2]:
        scale = _grad_scale(term, sums, upstream, (sums.means if term.mean else means, column_means))
    return Gradients(x, keys, scale, empty)


def _grad_scale(
    term: LogSumExp, sums: Sums, upstream: tuple[Tensor, Tensor], means: tuple[Tensor | None, Tensor | None]
) -> Tensor:
    """Gradient of the scale, whose derivative is the mean similarity."""
    products = [
        (grad.masked_fill(side == -torch.inf, 0) * mean.view(side.shape)).flatten(1)
        for side, grad, mean in zip((sums.rows, sums.columns), upstream, means, strict=True)
        if mean is not None
    ]
    if term.scale.shape[1] > 1:
        return products[0].view(-1, term.scale.shape[1]).sum(0, keepdim=True)
    return torch.cat(products, 1).sum(1, keepdim=True)
