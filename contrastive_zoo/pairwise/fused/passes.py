"""The two passes of every term, by kernels.

Shapes: G sets of N rows, M keys, K scales, D features.
"""

from dataclasses import replace

from torch import Tensor

from contrastive_zoo.devices import beside
from contrastive_zoo.pairwise.fused import launch, logarithms, plain_sums
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Gradients, LogSumExp, Needs, Sums, Term


def prepare(sweep: Sweep) -> Sweep:
    """The sweep with ids on the device of the rows, so that both passes share one copy, which nothing waits for."""
    if sweep.ids is None or (sweep.group and sweep.counts == "different"):
        return sweep
    key_ids = None if sweep.key_ids is None else beside(sweep.key_ids, sweep.x)
    return replace(sweep, ids=beside(sweep.ids, sweep.x), key_ids=key_ids, group=0)


def orders(sweep: Sweep) -> bool:
    """Whether to order rows by id: kernels then visit few tiles. Of few rows, sorting takes longer than visiting all."""
    return sweep.x.shape[-2] ** 2 >= launch.MANY_PAIRS


def residual(sweep: Sweep, term: Term, needs: Needs) -> int:
    """Number of entries kept for the backward pass."""
    sizes = (
        logarithms.kept_sizes(sweep, term, needs) if isinstance(term, LogSumExp) else plain_sums.kept_sizes(sweep, term, needs)
    )
    return sum(sizes)


def forward(sweep: Sweep, term: Term, needs: Needs) -> tuple[Sums, Tensor]:
    """The sums, and the entries kept for the backward pass."""
    kept = sweep.x.new_empty(residual(sweep, term, needs))
    if isinstance(term, LogSumExp):
        return logarithms.forward(sweep, term, needs, kept), kept
    return plain_sums.forward(sweep, term, needs, kept), kept


def backward(sweep: Sweep, term: Term, sums: Sums, upstream: tuple[Tensor, Tensor], kept: Tensor, needs: Needs) -> Gradients:
    """The needed gradients of rows, keys, scale and offset."""
    if isinstance(term, LogSumExp):
        return logarithms.backward(sweep, term, sums, upstream, kept, needs)
    return plain_sums.backward(sweep, term, sums, upstream, kept, needs)
