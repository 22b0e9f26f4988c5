r"""In-batch negatives drawn by Metropolis-Hastings chains: what EMC2 needs of a batch, in O(B D) memory.

Each row is an anchor with a chain over the rows of other samples, whose target is softmax(scale * s). The chain meets every
row once, in batch order; the first k of its nb valid columns are burn-in, and its state after each later one is kept with
weight 1 / (nb - k). Anchors are taken in blocks, so that no (2B, 2B) matrix exists.

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575

Shapes: N rows, D features, R anchors of a block.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.metropolis_hastings import walk
from contrastive_zoo.samplers.randomness import generator

# Scores of a block of anchors: with thresholds, states and counts beside them about 16 MiB.
BLOCK_NUMEL = 2**20


class SampledNegatives(NamedTuple):
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


@samplers.register(
    "mcmc",
    title="Metropolis-Hastings chains over the rows of the batch",
    summary="Negatives from softmax(s / temperature), by a chain per anchor that goes on from batch to batch.",
    paper="Yau et al., ICML 2024, algorithm 1. arXiv:2404.10575",
    equation=r"\text{accept row } j \text{ if } \log u_j < (s_{aj} - s_{a,\mathrm{state}})/\tau",
    draws=True,
    ranges={"burn_in": Range(0, 1, open_high=True)},
)
@dataclass(frozen=True, kw_only=True)
class ChainSampler:
    r"""Walks a chain for every row over the rows of other samples, with target softmax(scale * s).

    Args:
        burn_in: Share of the valid columns whose states are not kept, in [0, 1).
        seed: Seed of the draws.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> x = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> sampler = zoo.get_sampler("mcmc", burn_in=0.0)
        >>> sampled = sampler(x, scale=torch.tensor(10.0), ids=torch.arange(8), step=torch.tensor(0))
        >>> sampled.similarity.shape
        torch.Size([8])
    """

    burn_in: float = 0.5
    seed: int = 0

    def __call__(
        self,
        x: Tensor,
        *,
        scale: Tensor,
        ids: Tensor,
        step: Tensor,
        carried: Tensor | None = None,
        uniform: bool = True,
    ) -> SampledNegatives:
        """Walk over one batch.

        Args:
            x: (N, D) rows.
            scale: 0-dim, 1 / temperature.
            ids: (N,) sample of each row.
            step: 0-dim integer on the host; draws differ from step to step.
            carried: (N,) log score of the state that each chain comes with; -inf, none, by default.
            uniform: Whether the upstream gradient will be the same for all anchors; if not, the backward pass walks again.
        """
        carried = x.new_full((len(x),), -torch.inf) if carried is None else carried.detach()
        values = mcmc_negatives(x, scale.detach(), ids, carried, self.burn_in, self.seed, step.clone(), uniform)
        return SampledNegatives(*values[:6])


def _first_kept(ids: Tensor, burn_in: float) -> tuple[Tensor, Tensor]:
    """For every row the column from which states are kept, and how many valid columns come from there on."""
    ordered, order = ids.sort(stable=True)
    group = torch.searchsorted(ordered, ids)
    same = torch.searchsorted(ordered, ids, right=True) - group
    valid = len(ids) - same
    burnt = (burn_in * valid.double()).long()
    # Own columns that lie among the first valid ones push the start back: own column r at position p has p - r before it.
    place = torch.arange(len(ids), device=ids.device)
    before = order - (place - torch.searchsorted(ordered, ordered))
    skipped = torch.zeros_like(ids).index_add_(0, group[order], (before < burnt[order]).to(ids.dtype))
    return burnt + skipped[group], valid - burnt


def _walk_block(
    x: Tensor,
    rows: slice,
    scale: Tensor,
    ids: Tensor,
    carried: Tensor,
    first_kept: Tensor,
    kept: Tensor,
    draws: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Shares (N + 1, R) of kept states, the carried one in row 0; end states and scores, log sums, moves, own-sample mask."""
    scores = x @ (x[rows] * scale).T
    own = ids[:, None] == ids[None, rows]
    scores.masked_fill_(own, -torch.inf)
    thresholds = torch.rand(scores.shape, generator=draws, device=x.device, dtype=x.dtype).log_()
    torch.sub(scores, thresholds, out=thresholds).masked_fill_(own, -torch.inf)
    states, score, moves = walk(scores, thresholds, carried[rows])
    shares = scores.new_zeros(len(x) + 1, scores.shape[1])
    start = int(first_kept[rows].min()) if ids.device.type == "cpu" else 0
    columns = torch.arange(start, len(x), device=x.device)[:, None]
    weight = ((columns >= first_kept[rows]) & ~own[start:]).to(x.dtype) / kept[rows].clamp_min(1)
    shares.scatter_add_(0, states[start:].long() + 1, weight)
    log_sum = torch.logsumexp(scores, 0)
    return shares, states[-1].long(), score, log_sum, moves, own


@torch.library.custom_op(
    "contrastive_zoo::mcmc_negatives",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor ids, Tensor carried, float burn_in, int seed, Tensor step, bool uniform)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def mcmc_negatives(
    x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor, uniform: bool
) -> tuple[Tensor, ...]:
    """The fields of `SampledNegatives`, and the gradient of the sum of the similarities if ``uniform``."""
    ids, scale = ids.to(x.device), scale.to(x)
    first_kept, kept = _first_kept(ids, burn_in)
    similarity, carried_share, log_score, log_mean, acceptance = (x.new_empty(len(x)) for _ in range(5))
    state = torch.empty(len(x), dtype=torch.int64, device=x.device)
    gradient = torch.zeros_like(x) if uniform else x.new_empty(0)
    draws = generator(seed, int(step), x.device)
    for rows in _blocks(len(x)):
        shares, state[rows], log_score[rows], log_sum, moves, own = _walk_block(
            x, rows, scale, ids, carried, first_kept, kept, draws
        )
        valid = (len(x) - own.sum(0)).clamp_min(1)
        mean = shares[1:].T @ x
        similarity[rows], carried_share[rows] = (mean * x[rows]).sum(1), shares[0]
        log_mean[rows], acceptance[rows] = log_sum - valid.log(), moves / valid
        if uniform:
            gradient[rows] += mean
            gradient.addmm_(shares[1:], x[rows])
    return similarity, carried_share, state, log_score, log_mean, acceptance, gradient


@mcmc_negatives.register_fake
def _(
    x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor, uniform: bool
) -> tuple[Tensor, ...]:
    rows = x.shape[:1]
    floats = [x.new_empty(rows) for _ in range(5)]
    gradient = torch.empty_like(x) if uniform else x.new_empty(0)
    return *floats[:2], x.new_empty(rows, dtype=torch.int64), *floats[2:], gradient


@torch.library.custom_op(
    "contrastive_zoo::mcmc_negatives_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor scale, Tensor ids, Tensor carried, float burn_in, int seed, Tensor step) -> Tensor",
)
def mcmc_negatives_backward(
    grad: Tensor, x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor
) -> Tensor:
    """Gradient of x for any upstream gradient, from a second walk with the same draws."""
    ids, scale = ids.to(x.device), scale.to(x)
    first_kept, kept = _first_kept(ids, burn_in)
    draws = generator(seed, int(step), x.device)
    gradient = torch.zeros_like(x)
    for rows in _blocks(len(x)):
        shares = _walk_block(x, rows, scale, ids, carried, first_kept, kept, draws)[0][1:] * grad[rows]
        gradient[rows] += shares.T @ x
        gradient.addmm_(shares, x[rows])
    return gradient


@mcmc_negatives_backward.register_fake
def _(
    grad: Tensor, x: Tensor, scale: Tensor, ids: Tensor, carried: Tensor, burn_in: float, seed: int, step: Tensor
) -> Tensor:
    return torch.empty_like(x)


def _blocks(rows: int) -> list[slice]:
    size = max(1, BLOCK_NUMEL // rows)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, scale, ids, carried, ctx.burn_in, ctx.seed, step, ctx.uniform = inputs
    ctx.mark_non_differentiable(*output[1:])
    if ctx.uniform:
        ctx.save_for_backward(output[6])
    else:
        ctx.save_for_backward(x, scale, ids, carried, step)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> Any:
    if ctx.uniform:
        # Anchors without a kept state have no share in the gradient, whatever their weight: any other anchor's will do.
        (gradient,) = ctx.saved_tensors
        grad_x = gradient * grad.gather(0, grad.abs().argmax()[None])
    else:
        x, scale, ids, carried, step = ctx.saved_tensors
        grad_x = mcmc_negatives_backward(grad, x, scale, ids, carried, ctx.burn_in, ctx.seed, step)
    return grad_x, None, None, None, None, None, None, None


mcmc_negatives.register_autograd(_gradient, setup_context=_setup)
