r"""Metropolis-Hastings chains over the rows of one batch: what the sampler "mcmc" needs of it, in O(B D) memory.

Each row is an anchor with a chain over the rows of other samples, whose target is softmax(scale * s). The chain meets every
row once, in their order; the first k of its nb valid columns are burn-in, and its state after each later one is kept with
weight 1 / (nb - k). Anchors are taken in blocks, so that no (2B, 2B) matrix exists.

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575

Shapes: N rows, D features, R anchors of a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.samplers.metropolis_hastings import Walk, blocks_of_anchors, log_thresholds
from contrastive_zoo.samplers.randomness import generator


class KeptStates(NamedTuple):
    """What the chains of a batch leave, for each of N rows.

    Attributes:
        similarity: (N,) mean similarity to the kept states in the batch, differentiable in both members of each pair.
        carried_share: (N,) share of the kept states that is still the carried one.
        state: (N,) int64 row that the chain ends at; -1 for the carried one.
        log_score: (N,) log score of that state.
        log_mean: (N,) log of the mean of exp(scale * s) over the valid columns; -inf without any.
        acceptance: (N,) moves per valid column.
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
    step: Tensor,
    carried: Tensor | None = None,
    burn_in: float = 0.5,
    seed: int = 0,
    uniform: bool = True,
) -> KeptStates:
    """Walk a chain for every row over the rows of other samples, in their order, with target softmax(scale * s).

    Args:
        x: (N, D) rows.
        scale: 0-dim, 1 / temperature.
        ids: (N,) sample of each row.
        step: 0-dim integer on the host; draws differ from step to step.
        carried: (N,) log score of the state that each chain comes with; -inf, none, by default.
        burn_in: Share of the valid columns whose states are not kept, in [0, 1).
        seed: Seed of the draws.
        uniform: Whether the upstream gradient will be the same for all anchors; if not, the backward pass walks again.

    Examples:
        >>> import torch
        >>> x = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> kept = walk_batch(x, scale=torch.tensor(10.0), ids=torch.arange(8), step=torch.tensor(0))
        >>> kept.similarity.shape
        torch.Size([8])
    """
    carried = x.new_full((len(x),), -torch.inf) if carried is None else carried.detach()
    values = mcmc_negatives(x, scale.detach(), ids, carried, burn_in, seed, step.clone(), uniform)
    return KeptStates(*values[:6])


@torch.no_grad()
def kept_shares(
    x: Tensor, *, scale: Tensor, ids: Tensor, step: Tensor, carried: Tensor, burn_in: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Shares of the kept states in a walk of `walk_batch`: (N, N) of each row for each anchor, and (N,) of the carried state.

    It walks again, with the same draws, and holds the matrix.
    """
    scale, columns = scale.to(x), _Columns.of(ids, burn_in, x.device)
    draws = generator(seed, int(step), x.device)
    shares, of_carried = x.new_empty(len(x), len(x)), x.new_empty(len(x))
    for rows in blocks_of_anchors(len(x), len(x), x.device):
        walk, _, own = _walk(x, rows, scale, carried, columns, draws)
        stays, carried_stay = _stays(walk, rows, columns, own)
        kept = columns.kept[rows].clamp_min(1)
        shares[rows], of_carried[rows] = (stays / kept).T, carried_stay / kept
    return shares, of_carried


class _Columns(NamedTuple):
    """Which columns count for which row: none of its own sample, and none in burn-in.

    Attributes:
        first_kept: (N,) column from which states are kept.
        kept: (N,) valid columns from there on.
        valid: (N,) valid columns.
        own_columns: Columns of pairs that are one sample, sorted by row; where the ids are.
        own_rows: Rows of these pairs; where the ids are, so that ids on the host cost no wait for an accelerator.
    """

    first_kept: Tensor
    kept: Tensor
    valid: Tensor
    own_columns: Tensor
    own_rows: Tensor

    @staticmethod
    def of(ids: Tensor, burn_in: float, device: torch.device) -> "_Columns":
        ordered, order = ids.sort(stable=True)
        group = torch.searchsorted(ordered, ids)
        same = torch.searchsorted(ordered, ids, right=True) - group
        valid = ids.shape[0] - same
        burnt = (burn_in * valid.double()).long()
        # Rows with as many others of their sample as any: the pairs that are one sample are a table with holes.
        rank = torch.arange(int(same.max()), device=ids.device)
        present = rank < same[:, None]
        own_rows, own_rank = present.nonzero(as_tuple=True)
        own_columns = order[group[own_rows] + own_rank]
        # The r-th own column, at position p, has p - r valid columns before it; if these are burnt it is passed over as well.
        passed = (own_columns - own_rank < burnt[own_rows]).long()
        first_kept = burnt.index_add(0, own_rows, passed)
        return _Columns(first_kept.to(device), (valid - burnt).to(device), valid.to(device), own_columns, own_rows)


def _walk(
    x: Tensor, rows: slice, scale: Tensor, carried: Tensor, columns: _Columns, draws: torch.Generator
) -> tuple[Walk, Tensor, tuple[Tensor, Tensor]]:
    """The walk of a block of anchors, the log of their sums of exponentials, and the pairs that do not count."""
    scores = x @ (x[rows] * scale).T
    ends = torch.tensor([rows.start, rows.stop], device=columns.own_rows.device)
    low, high = torch.searchsorted(columns.own_rows, ends).tolist()
    own = columns.own_columns[low:high].to(x.device), (columns.own_rows[low:high] - rows.start).to(x.device)
    scores[own] = -torch.inf
    log_sum = torch.logsumexp(scores, 0)
    log_uniforms = torch.rand(scores.shape, generator=draws, device=x.device, dtype=x.dtype).log_()
    return Walk.over(scores, log_thresholds(scores, log_uniforms), carried[rows]), log_sum, own


def _stays(walk: Walk, rows: slice, columns: _Columns, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """How many kept columns each anchor spent at each state, (N, R), and at its carried state, (R,)."""
    first_kept = columns.first_kept[rows]
    weight = torch.arange(walk.columns, dtype=walk.accepted.dtype, device=first_kept.device)[:, None].repeat(1, len(first_kept))
    weight.ge_(first_kept.to(weight.dtype))
    weight[own] = 0
    return walk.stays(weight)


@operator(
    "contrastive_zoo::mcmc_negatives",
    "(Tensor x, Tensor scale, Tensor ids, Tensor carried, float burn_in, int seed, Tensor step, bool uniform)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def mcmc_negatives(
    x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor, uniform: bool
) -> tuple[Tensor, ...]:
    """The fields of `KeptStates`, and the gradient of the sum of the similarities if ``uniform``."""
    scale, columns = scale.to(x), _Columns.of(ids, burn_in, x.device)
    similarity, carried_share, log_score, log_mean, acceptance = (x.new_empty(x.shape[0]) for _ in range(5))
    state = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    gradient = torch.zeros_like(x) if uniform else x.new_empty(0)
    draws = generator(seed, int(step), x.device)
    for rows in blocks_of_anchors(x.shape[0], x.shape[0], x.device):
        walk, log_sum, own = _walk(x, rows, scale, carried, columns, draws)
        stays, carried_stay = _stays(walk, rows, columns, own)
        per_state = x[rows] / columns.kept[rows, None].clamp_min(1)
        mean = stays.T @ x / columns.kept[rows, None].clamp_min(1)
        similarity[rows] = torch.linalg.vecdot(mean, x[rows])
        carried_share[rows] = carried_stay / columns.kept[rows].clamp_min(1)
        state[rows], log_score[rows] = walk.end(), walk.log_score
        valid = columns.valid[rows].clamp_min(1)
        log_mean[rows], acceptance[rows] = log_sum - valid.to(x.dtype).log(), walk.moves() / valid
        if uniform:
            gradient[rows] += mean
            gradient.addmm_(stays, per_state)
    return similarity, carried_share, state, log_score, log_mean, acceptance, gradient


@mcmc_negatives.register_fake
def _(
    x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor, uniform: bool
) -> tuple[Tensor, ...]:
    rows = x.shape[:1]
    floats = [x.new_empty(rows) for _ in range(5)]
    gradient = torch.empty_like(x) if uniform else x.new_empty(0)
    return *floats[:2], x.new_empty(rows, dtype=torch.int64), *floats[2:], gradient


@operator(
    "contrastive_zoo::mcmc_negatives_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor ids, Tensor carried, float burn_in, int seed, Tensor step) -> Tensor",
)
def mcmc_negatives_backward(
    grad: Tensor, x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor
) -> Tensor:
    """Gradient of x for any upstream gradient, from a second walk with the same draws."""
    scale, columns = scale.to(x), _Columns.of(ids, burn_in, x.device)
    draws = generator(seed, int(step), x.device)
    gradient = torch.zeros_like(x)
    for rows in blocks_of_anchors(x.shape[0], x.shape[0], x.device):
        walk, _, own = _walk(x, rows, scale, carried, columns, draws)
        weight = (grad[rows] / columns.kept[rows].clamp_min(1))[:, None]
        stays, _ = _stays(walk, rows, columns, own)
        gradient[rows] += weight * (stays.T @ x)
        gradient.addmm_(stays, weight * x[rows])
    return gradient


@mcmc_negatives_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, scale, ids, carried, ctx.burn_in, ctx.seed, step, ctx.uniform = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if ctx.uniform:
        ctx.save_for_backward(output[6])
    else:
        ctx.save_for_backward(x, scale, ids, carried, step)


def _gradient(ctx: Any, compute: Any, grad: Tensor, *_: Any) -> Any:
    if ctx.uniform:
        # Anchors without a kept state have no share in the gradient, whatever their weight: any other anchor's will do.
        (gradient,) = ctx.saved_tensors
        grad_x = gradient * grad.gather(0, grad.abs().argmax()[None])
    else:
        x, scale, ids, carried, step = ctx.saved_tensors
        grad_x = compute(grad, x, scale, ids, carried, ctx.burn_in, ctx.seed, step)
    return grad_x, None, None, None, None, None, None, None


mcmc_negatives.differentiate(mcmc_negatives_backward, _setup, _gradient)
