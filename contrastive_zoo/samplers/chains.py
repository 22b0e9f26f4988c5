"""What walks over a batch take and give, whoever computes them (`walk_plain.py`, `walk_fused.py`).

Shapes: N rows, D features, A anchors among the rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.samplers.randomness import widest_float


class Chains(NamedTuple):
    """A chain for each anchor, over the rows of other samples, in their order.

    Attributes:
        x: (N, D) rows.
        scale: 0-dim, 1 / temperature.
        ids: (N,) sample of each row, on the device of the rows.
        carried: (A,) log score of the carried state of each anchor, -inf for none.
        seed: Result of `step_seed`.
        burn_in: Fraction of the valid columns whose states are not kept, in [0, 1).
        uniform: Whether the upstream gradient will be the same for all anchors; if not, the backward pass repeats the walk.
        first: First of the A rows that are anchors.
        fused: Whether kernels walk.
        operand: Half precision in which kernels multiply; None for that of the rows.
    """

    x: Tensor
    scale: Tensor
    ids: Tensor
    carried: Tensor
    seed: Tensor
    burn_in: float = 0.5
    uniform: bool = True
    first: int = 0
    fused: bool = False
    operand: torch.dtype | None = None


class KeptStates(NamedTuple):
    """Result of the chains of A anchors.

    Attributes:
        similarity: (A,) mean similarity to the kept states in the batch, differentiable in both rows of each pair.
        carried_share: (A,) fraction of the kept states that equal the carried state.
        state: (A,) int64 final row of the chain; -1 for the carried state.
        log_score: (A,) log score of the final state.
        log_mean: (A,) log of the mean of exp(scale * s) over the valid columns; -inf without any.
        acceptance: (A,) moves per valid column.
    """

    similarity: Tensor
    carried_share: Tensor
    state: Tensor
    log_score: Tensor
    log_mean: Tensor
    acceptance: Tensor


class Columns(NamedTuple):
    """Valid and kept columns of each row: columns of the row's own sample are invalid, and burn-in columns are not kept.

    Attributes:
        first_kept: (N,) valid columns from this one on are kept.
        kept: (N,) number of kept columns, at least 1.
        valid: (N,) number of valid columns.
    """

    first_kept: Tensor
    kept: Tensor
    valid: Tensor

    @staticmethod
    def of(ids: Tensor, burn_in: float) -> "Columns":
        """For rows of the samples ``ids``; reads no value, so no host waits for an accelerator."""
        ordered, order = ids.sort(stable=True)
        start = torch.searchsorted(ordered, ids)
        valid = len(ids) - (torch.searchsorted(ordered, ids, right=True) - start)
        burnt = (burn_in * valid.to(widest_float(ids.device))).long()
        # The r-th own column, at position p, has p - r valid columns before it; if these are burn-in it is skipped as well.
        group = start[order]
        rank = torch.arange(len(ids), device=ids.device) - group
        passed = (order - rank < burnt[order]).long()
        first_kept = burnt + torch.zeros_like(burnt).index_add_(0, group, passed)[start]
        return Columns(first_kept, (valid - burnt).clamp_min(1), valid)
