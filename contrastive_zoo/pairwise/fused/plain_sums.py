"""The two passes of terms that are sums of one function of each pair: softplus, squares and kernels.

Shapes: G sets of N rows, M keys, D features.
"""

import torch
from torch import Tensor

from contrastive_zoo.pairwise.fused.launch import Launches, Weighted
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, KernelSum, Needs, Softplus, Sums, Term


def kept_sizes(sweep: Sweep, term: Term, needs: Needs) -> tuple[int, int]:
    """Number of kept entries, of a softplus: derivatives of the sums in the biases, and in the scale."""
    softplus, rows = isinstance(term, Softplus), sweep.x.shape[-2]
    return rows * (softplus and needs[3]), rows * (softplus and needs[2])


def forward(sweep: Sweep, term: Term, needs: Needs, kept: Tensor) -> Sums:
    """The sums; what the backward pass needs goes into ``kept``."""
    launches, empty = Launches(sweep, term), sweep.x.new_empty
    sums = Sums(empty(1, *sweep.x.shape[:-1]), empty(1, 0), empty(1, *sweep.x.shape[:-2], 0))
    of_bias, of_scale = kept.split(kept_sizes(sweep, term, needs))
    level = launches.function.level
    pointers = (
        level,
        # The bias is that of the row.
        level if isinstance(term, KernelSum) else None,
        sums.rows,
        of_bias if of_bias.numel() else None,
        of_scale if of_scale.numel() else None,
    )
    flags = {"PART": launches.x.part, "TERM": launches.function.term}
    launches.launch("sums", launches.x, launches.keys, pointers, flags, launches.function.numbers)
    return sums


def backward(sweep: Sweep, term: Term, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs) -> Gradients:
    """The needed gradients of rows, keys, scale and offset."""
    empty, grad = sweep.x.new_empty(0), upstream[0]
    x, keys, scale, offset = empty, empty, empty, empty
    of_bias, of_scale = kept.split(kept_sizes(sweep, term, needs))
    of_lengths = needs[3] and isinstance(term, KernelSum)
    if needs[0] or of_lengths or (needs[1] and sweep.keys is not None):
        launches = Launches(sweep, term)
        weights, _, top = launches.weights(sums, upstream)
        of_rows = Weighted(launches.function.level, None, weights)
        if needs[0] or of_lengths:
            offset = torch.empty_like(sums.rows[0]) if of_lengths else empty
            through = of_rows, of_rows if sweep.keys is None else Weighted()
            x = launches.gradient(launches.x, launches.keys, through, top, offset if of_lengths else None)
        if needs[1] and sweep.keys is not None:
            keys = launches.gradient(launches.keys, launches.x, (Weighted(), of_rows), top)
    if isinstance(term, Softplus):
        scale = (grad[0] * of_scale).sum() if needs[2] else scale
        offset = grad[0] * of_bias if needs[3] else offset
    return Gradients(x, keys, scale, offset)
