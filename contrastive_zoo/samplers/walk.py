r"""Metropolis-Hastings chains over the rows of one batch, for the sampler "mcmc", in O(B D) memory.

Each row is an anchor with a chain over the rows of other samples, whose target is softmax(scale * s). Every row is proposed to
the chain once, in order; the first k of its nb valid columns are burn-in, and the state after each later column is kept with
weight 1 / (nb - k). Anchors are processed in blocks, so no (2B, 2B) matrix is stored.

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575

Shapes: N rows, D features, A anchors among the rows, R anchors of a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.samplers.metropolis_hastings import Walk, blocks_of_anchors, log_thresholds
from contrastive_zoo.samplers.randomness import ONCE, DrawTable


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


def walk_batch(
    x: Tensor,
    *,
    scale: Tensor,
    ids: Tensor,
    seed: Tensor,
    carried: Tensor | None = None,
    burn_in: float = 0.5,
    uniform: bool = True,
    first: int = 0,
) -> KeptStates:
    """Walk a chain for each anchor over the rows of other samples, in their order, with target softmax(scale * s).

    Args:
        x: (N, D) rows.
        scale: 0-dim, 1 / temperature.
        ids: (N,) sample of each row.
        seed: Result of `step_seed`.
        carried: (A,) log score of the carried state of each anchor; by default all rows are anchors without a carried state,
            -inf.
        burn_in: Fraction of the valid columns whose states are not kept, in [0, 1).
        uniform: Whether the upstream gradient will be the same for all anchors; if not, the backward pass repeats the walk.
        first: First of the A rows that are anchors.

    Examples:
        >>> import torch
        >>> from contrastive_zoo.samplers.randomness import step_seed
        >>> x = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> seed = step_seed(0, torch.tensor(0))
        >>> kept = walk_batch(x, scale=torch.tensor(10.0), ids=torch.arange(8), seed=seed)
        >>> kept.similarity.shape
        torch.Size([8])
    """
    carried = x.new_full((len(x),), -torch.inf) if carried is None else carried.detach()
    return KeptStates(*batch_walk(x, scale.detach(), ids, carried, burn_in, seed, uniform, first)[:6])


@torch.no_grad()
def kept_shares(
    x: Tensor, *, scale: Tensor, ids: Tensor, seed: Tensor, carried: Tensor, burn_in: float
) -> tuple[Tensor, Tensor]:
    """Fractions of the kept states in a walk of `walk_batch`: (N, N) per anchor and row, and (N,) for the carried state.

    Repeats the walk with the same draws, and stores the (N, N) matrix.
    """
    scale, columns = scale.to(x), _Columns.of(ids, burn_in, x.device)
    draws = DrawTable(seed, x.device)
    shares, of_carried = x.new_empty(len(x), len(x)), x.new_empty(len(x))
    for rows in blocks_of_anchors(slice(0, len(x)), len(x), x.device):
        walk, _, excluded = _walk(x, rows, scale, carried[rows], columns, draws)
        stays, carried_stay = _stays(walk, rows, columns, excluded)
        kept = columns.kept[rows].clamp_min(1)
        shares[rows], of_carried[rows] = (stays / kept).T, carried_stay / kept
    return shares, of_carried


class _Columns(NamedTuple):
    """Valid and kept columns of each row: columns of the row's own sample are invalid, and burn-in columns are not kept.

    Attributes:
        first_kept: (N,) first column whose state is kept.
        kept: (N,) number of kept columns.
        valid: (N,) number of valid columns.
        same_columns: Columns of pairs of the same sample, sorted by row; on the device of the ids.
        same_rows: Rows of these pairs; on the device of the ids, so ids on the host need no synchronisation.
    """

    first_kept: Tensor
    kept: Tensor
    valid: Tensor
    same_columns: Tensor
    same_rows: Tensor

    @staticmethod
    def of(ids: Tensor, burn_in: float, device: torch.device) -> "_Columns":
        ordered, order = ids.sort(stable=True)
        group = torch.searchsorted(ordered, ids)
        same = torch.searchsorted(ordered, ids, right=True) - group
        valid = ids.shape[0] - same
        burnt = (burn_in * valid.double()).long()
        # Own columns of each row, padded to the largest group.
        rank = torch.arange(int(same.max()), device=ids.device)
        present = rank < same[:, None]
        same_rows, rank_among_same = present.nonzero(as_tuple=True)
        same_columns = order[group[same_rows] + rank_among_same]
        # The r-th own column, at position p, has p - r valid columns before it; if these are burn-in it is skipped as well.
        passed = (same_columns - rank_among_same < burnt[same_rows]).long()
        first_kept = burnt.index_add(0, same_rows, passed)
        return _Columns(first_kept.to(device), (valid - burnt).to(device), valid.to(device), same_columns, same_rows)


def _walk(
    x: Tensor, rows: slice, scale: Tensor, carried: Tensor, columns: _Columns, draws: DrawTable
) -> tuple[Walk, Tensor, tuple[Tensor, Tensor]]:
    """The walk of a block of anchors, their log-sum-exps, and the excluded pairs."""
    scores = x @ (x[rows] * scale).T
    ends = torch.tensor([rows.start, rows.stop], device=columns.same_rows.device)
    low, high = torch.searchsorted(columns.same_rows, ends).tolist()
    excluded = columns.same_columns[low:high].to(x.device), (columns.same_rows[low:high] - rows.start).to(x.device)
    scores[excluded] = -torch.inf
    log_sum = torch.logsumexp(scores, 0)
    log_uniforms = draws.uniform(slice(0, len(x)), rows, x.dtype).log_()
    return Walk.over(scores, log_thresholds(scores, log_uniforms), carried), log_sum, excluded


def _stays(walk: Walk, rows: slice, columns: _Columns, excluded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Number of kept columns that each anchor spent at each state, (N, R), and at its carried state, (R,)."""
    first_kept = columns.first_kept[rows]
    weight = torch.arange(walk.columns, dtype=walk.accepted.dtype, device=first_kept.device)[:, None].repeat(1, len(first_kept))
    weight.ge_(first_kept.to(weight.dtype))
    weight[excluded] = 0
    return walk.stays(weight)


@operator(
    "contrastive_zoo::batch_walk",
    "(Tensor x, Tensor scale, Tensor ids, Tensor carried, float burn_in, Tensor seed, bool uniform, SymInt first)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def batch_walk(
    x: Tensor,
    scale: Tensor,
    ids: Tensor,
    carried: Tensor,
    burn_in: float,
    seed: Tensor,
    uniform: bool,
    first: int,
) -> tuple[Tensor, ...]:
    """The fields of `KeptStates` for A anchors, and the gradient of the sum of their similarities if ``uniform``."""
    count = len(carried)
    scale, columns = scale.to(x), _Columns.of(ids, burn_in, x.device)
    similarity, carried_share, log_score, log_mean, acceptance = (x.new_empty(count) for _ in range(5))
    state = torch.empty(count, dtype=torch.int64, device=x.device)
    gradient = torch.zeros_like(x) if uniform else x.new_empty(0)
    draws = DrawTable(seed, x.device)
    for rows in blocks_of_anchors(slice(first, first + count), x.shape[0], x.device):
        place = slice(rows.start - first, rows.stop - first)
        walk, log_sum, excluded = _walk(x, rows, scale, carried[place], columns, draws)
        stays, carried_stay = _stays(walk, rows, columns, excluded)
        kept, valid = columns.kept[rows].clamp_min(1), columns.valid[rows].clamp_min(1)
        mean = stays.T @ x / kept[:, None]
        similarity[place] = torch.linalg.vecdot(mean, x[rows])
        carried_share[place] = carried_stay / kept
        state[place], log_score[place] = walk.end(), walk.log_score
        log_mean[place], acceptance[place] = log_sum - valid.to(x.dtype).log(), walk.moves() / valid
        if uniform:
            gradient[rows] += mean
            gradient.addmm_(stays, x[rows] / kept[:, None])
    return similarity, carried_share, state, log_score, log_mean, acceptance, gradient


@batch_walk.register_fake
def _(*taken: Any) -> tuple[Tensor, ...]:
    x, _, _, carried, _, _, uniform, _ = taken
    floats = [torch.empty_like(carried) for _ in range(5)]
    gradient = torch.empty_like(x) if uniform else x.new_empty(0)
    return *floats[:2], torch.empty_like(carried, dtype=torch.int64), *floats[2:], gradient


@operator(
    "contrastive_zoo::batch_walk_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor ids, Tensor carried, float burn_in, Tensor seed, SymInt first) -> Tensor",
)
def batch_walk_backward(
    grad: Tensor, x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: Tensor, first: int
) -> Tensor:
    """Gradient of x for any upstream gradient of the anchors, which start at ``first``, by repeating the walk."""
    scale, columns = scale.to(x), _Columns.of(ids, burn_in, x.device)
    draws = DrawTable(seed, x.device)
    gradient = torch.zeros_like(x)
    for rows in blocks_of_anchors(slice(first, first + len(grad)), x.shape[0], x.device):
        place = slice(rows.start - first, rows.stop - first)
        walk, _, excluded = _walk(x, rows, scale, carried[place], columns, draws)
        weight = (grad[place] / columns.kept[rows].clamp_min(1))[:, None]
        stays, _ = _stays(walk, rows, columns, excluded)
        gradient[rows] += weight * (stays.T @ x)
        gradient.addmm_(stays, weight * x[rows])
    return gradient


@batch_walk_backward.register_fake
def _(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, scale, ids, carried, ctx.burn_in, seed, ctx.uniform, ctx.first = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if ctx.uniform:
        ctx.save_for_backward(output[6], x)  # the gradient depends on x, so a second derivative is refused
    else:
        ctx.save_for_backward(x, scale, ids, carried, seed)


def _gradient(ctx: Any, compute: Any, grad: Tensor, *_: Any) -> Any:
    if not ctx.uniform:
        x, scale, ids, carried, seed = ctx.saved_tensors
        grad_x = compute(grad, x, scale, ids, carried, ctx.burn_in, seed, ctx.first)
    else:
        # Anchors without a kept state contribute no gradient, so their upstream gradient may differ: use the largest.
        gradient, _ = ctx.saved_tensors
        grad_x = gradient * grad.gather(0, grad.abs().argmax()[None]) if grad.shape[0] else gradient
    return grad_x, None, None, None, None, None, None, None


batch_walk.differentiate(batch_walk_backward, _setup, _gradient, advice=ONCE)
