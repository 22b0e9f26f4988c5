r"""Negatives drawn independently, with replacement, anew for each pair of an anchor and a positive; in O(B D) memory.

    out_i = sum_{j in P(i)} log(1 + mean_k exp(s_{i, n_ijk}) / exp(s_ij)),    n_ijk ~ q_i, proportional to exp(beta s_in)

The gradient goes through the similarities, not through q. Anchors are taken in blocks; the backward pass makes the same draws.

Shapes: N rows, D features, R anchors of a block with at most P positives, K draws for each.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.samplers.randomness import generator

# Similarities and draws of a block of anchors; with what is made of them about 32 MiB.
BLOCK_NUMEL = 2**20


class Rules(NamedTuple):
    """Who may be what to an anchor.

    Attributes:
        positives: (N,) ids; rows with the anchor's id are its positives.
        excluded: (N,) ids; rows with the anchor's id are none of its negatives. None: all rows are.
        self_positive: Whether an anchor is a positive of itself.
        beta: How much harder negatives are preferred.
        num_negatives: K.
    """

    positives: Tensor
    excluded: Tensor | None
    self_positive: bool
    beta: float
    num_negatives: int


class _Block(NamedTuple):
    """Some anchors with their positives and draws.

    Attributes:
        rows: (R,) anchors.
        similarity: (R, N).
        positive: (R, P) similarities to the positives.
        counts: (R, P) whether there is such a positive.
        columns: (R, P) the positives.
        draws: (R, P * K) the negatives.
        negative: (R, P, K) similarities to them.
    """

    rows: Tensor
    similarity: Tensor
    positive: Tensor
    counts: Tensor
    columns: Tensor
    draws: Tensor
    negative: Tensor

    def logits(self) -> Tensor:
        """(R, P) log of the mean over the draws, minus the positive."""
        return self.negative.logsumexp(2) - math.log(self.negative.shape[2]) - self.positive


def _blocks(x: Tensor, rules: Rules, seed: int, step: Tensor) -> Iterator[_Block]:
    """All anchors; those with as many positives side by side, so that the tables of positives have few holes."""
    ids = rules.positives.cpu()
    ordered, order = ids.sort(stable=True)
    first = torch.searchsorted(ordered, ids)
    sizes, anchors = (torch.searchsorted(ordered, ids, right=True) - first).sort(stable=True)
    draws = generator(seed, int(step), x.device)
    for start, stop in _bounds(sizes.tolist(), rules.num_negatives):
        rows, places = anchors[start:stop], torch.arange(int(sizes[stop - 1]))
        columns = order[(first[rows, None] + places).clamp_max(len(ids) - 1)]
        counts = places < sizes[start:stop, None]
        if not rules.self_positive:
            counts &= columns != rows[:, None]
        yield _block(x, rows.to(x.device), columns.to(x.device), counts.to(x.device), rules, draws)


def _bounds(sizes: list[int], num_negatives: int) -> Iterator[tuple[int, int]]:
    """First and last anchor of each block; sizes, the numbers of their positives, do not decrease."""
    start = 0
    for stop in range(1, len(sizes) + 1):
        numel = len(sizes) + num_negatives * sizes[min(stop, len(sizes) - 1)]
        if stop == len(sizes) or (stop + 1 - start) * numel > BLOCK_NUMEL:
            yield start, stop
            start = stop


def _block(x: Tensor, rows: Tensor, columns: Tensor, counts: Tensor, rules: Rules, draws: torch.Generator) -> _Block:
    similarity = x[rows] @ x.T
    weights = (rules.beta * similarity).double()
    if rules.excluded is not None:
        excluded = rules.excluded.to(x.device)
        weights.masked_fill_(excluded[rows, None] == excluded[None, :], -torch.inf)
    weights.sub_(weights.amax(1, keepdim=True)).exp_()
    # An anchor without negatives draws anything, and counts for nothing.
    counts = counts & ~weights[:, :1].isnan()
    drawn = draw(weights.nan_to_num_(1.0), columns.shape[1] * rules.num_negatives, draws)
    negative = similarity.gather(1, drawn).unflatten(1, (-1, rules.num_negatives))
    return _Block(rows, similarity, similarity.gather(1, columns), counts, columns, drawn, negative)


def draw(weights: Tensor, size: int, draws: torch.Generator) -> Tensor:
    """(R, size) columns, drawn with replacement with probabilities proportional to the weights (R, N)."""
    return torch.multinomial(weights, size, replacement=True, generator=draws)


def independent_negatives(x: Tensor, rules: Rules, *, seed: int, step: Tensor) -> Tensor:
    """(N,) sums over the positives of each row; 0, without gradient, for a row without positives or negatives.

    Differentiable once. Ids on an accelerator are waited for: they decide how much is drawn.

    Args:
        x: (N, D) rows.
        rules: Who may be what.
        seed: Seed of the draws.
        step: 0-dim integer on the host; draws differ from step to step.
    """
    return _sampled_softplus(x, *rules, seed, step.clone())


@operator(
    "contrastive_zoo::sampled_softplus",
    "(Tensor x, Tensor positives, Tensor? excluded, bool self_positive, float beta, int num_negatives, int seed, Tensor step)"
    " -> Tensor",
)
def _sampled_softplus(
    x: Tensor,
    positives: Tensor,
    excluded: Tensor | None,
    self_positive: bool,
    beta: float,
    num_negatives: int,
    seed: int,
    step: Tensor,
) -> Tensor:
    sums = x.new_zeros(x.shape[0])
    for block in _blocks(x, Rules(positives, excluded, self_positive, beta, num_negatives), seed, step):
        # From 40 on, softplus(z) is z in float64 too.
        sums[block.rows] = (torch.nn.functional.softplus(block.logits(), threshold=40) * block.counts).sum(1)
    return sums


@_sampled_softplus.register_fake
def _(
    x: Tensor,
    positives: Tensor,
    excluded: Tensor | None,
    self_positive: bool,
    beta: float,
    num_negatives: int,
    seed: int,
    step: Tensor,
) -> Tensor:
    return x.new_empty(x.shape[0])


@operator(
    "contrastive_zoo::sampled_softplus_backward",
    "(Tensor grad, Tensor x, Tensor positives, Tensor? excluded, bool self_positive, float beta, int num_negatives, int seed,"
    " Tensor step) -> Tensor",
)
def _sampled_softplus_backward(
    grad: Tensor,
    x: Tensor,
    positives: Tensor,
    excluded: Tensor | None,
    self_positive: bool,
    beta: float,
    num_negatives: int,
    seed: int,
    step: Tensor,
) -> Tensor:
    gradient = torch.zeros_like(x)
    for block in _blocks(x, Rules(positives, excluded, self_positive, beta, num_negatives), seed, step):
        of_logits = block.logits().sigmoid() * block.counts * grad[block.rows, None]
        of_draws = (block.negative.softmax(2) * of_logits[:, :, None]).flatten(1)
        weight = torch.zeros_like(block.similarity).scatter_add_(1, block.draws, of_draws)
        weight.scatter_add_(1, block.columns, -of_logits)
        gradient[block.rows] += weight @ x
        gradient.addmm_(weight.T, x[block.rows])
    return gradient


@_sampled_softplus_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    positives: Tensor,
    excluded: Tensor | None,
    self_positive: bool,
    beta: float,
    num_negatives: int,
    seed: int,
    step: Tensor,
) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, positives, excluded, ctx.self_positive, ctx.beta, ctx.num_negatives, ctx.seed, step = inputs
    ctx.save_for_backward(x, positives, excluded, step)


def _gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    x, positives, excluded, step = ctx.saved_tensors
    gradient = compute(grad, x, positives, excluded, ctx.self_positive, ctx.beta, ctx.num_negatives, ctx.seed, step)
    return gradient, None, None, None, None, None, None, None


_sampled_softplus.differentiate(_sampled_softplus_backward, _setup, _gradient)
