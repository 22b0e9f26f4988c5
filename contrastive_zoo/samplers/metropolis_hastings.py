r"""Metropolis-Hastings over columns of scores, and the estimate of EMC2 made of it.

A chain at a state with log score c meets column j with log score x_j and moves there if log(uniform) < x_j - c, that is, if
c < t_j = x_j - log(uniform_j). So a column is the map "below t_j becomes x_j", and two columns make another such map: (t1, x1)
then (t2, x2) is (max(t1, t2), x2) if x1 < t2, else (t1, x1). Columns are taken in blocks: all blocks are composed at once,
the chain hops from block to block, then all blocks are walked at once.

Shapes: A anchors (chains), M columns.
"""

import math

import torch
from torch import Tensor

from contrastive_zoo.checks import shape


def metropolis_hastings(
    log_scores: Tensor, log_current: Tensor, uniforms: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Walks a chain for every row over all columns in order, accepting column j if $\log u_j < x_j - c$.

    Args:
        log_scores: (B, M) log scores x; -inf columns are never accepted.
        log_current: (B,) log score c of the carried state; -inf if there is none.
        uniforms: (B, M) draws from [0, 1).
        state: (B,) int64 states to go on from when a scan is continued over further columns; -1, the carried state, by default.

    Returns:
        (B, M) int64 state after each column, the number of a column or what ``state`` said; and (B,) its log score at the end.

    Raises:
        ValueError: Shapes do not fit.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> log_scores = torch.tensor([[0.0, -1.0, 2.0]])
        >>> zoo.samplers.metropolis_hastings(log_scores, torch.tensor([-torch.inf]), torch.full((1, 3), 0.5))
        (tensor([[0, 0, 2]]), tensor([2.]))
    """
    if log_scores.dim() != 2 or log_current.shape != log_scores.shape[:1] or uniforms.shape != log_scores.shape:
        raise ValueError(
            "log_scores and uniforms must be (B, M) and log_current (B,), got "
            f"{shape(log_scores)}, {shape(uniforms)} and {shape(log_current)}."
        )
    if state is not None and state.shape != log_current.shape:
        raise ValueError(f"state must have shape {shape(log_current)}, got {shape(state)}.")
    scores = log_scores.T.contiguous()
    thresholds = scores - uniforms.T.log()
    thresholds.masked_fill_(scores == -torch.inf, -torch.inf)
    states, log_score, _ = walk(scores, thresholds, log_current)
    if state is not None:
        states = torch.where(states < 0, state.to(states), states)
    return states.T.contiguous().to(torch.int64), log_score


def walk(scores: Tensor, thresholds: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The walk on (M, A) log scores and thresholds; a threshold of -inf is never accepted.

    Returns:
        (M, A) int32 column that each chain is at after each column, -1 before its first move; (A,) log score at the end; and
        (A,) number of moves.
    """
    columns, anchors = scores.shape
    width = max(1, math.isqrt(max(columns, 1) // 2))
    blocks = -(-columns // width)
    padding = blocks * width - columns
    if padding:
        scores = torch.nn.functional.pad(scores, (0, 0, 0, padding), value=-torch.inf)
        thresholds = torch.nn.functional.pad(thresholds, (0, 0, 0, padding), value=-torch.inf)
    scores, thresholds = scores.view(blocks, width, anchors), thresholds.view(blocks, width, anchors)
    start = _block_starts(scores, thresholds, current)
    states = torch.empty(blocks, width, anchors, dtype=torch.int32, device=scores.device)
    moves = torch.zeros(blocks, anchors, dtype=torch.int32, device=scores.device)
    at = torch.full((blocks, anchors), -1, dtype=torch.int32, device=scores.device)
    number = torch.arange(blocks * width, dtype=torch.int32, device=scores.device).view(blocks, width, 1)
    for j in range(width):
        accepted = thresholds[:, j] > start
        start = torch.where(accepted, scores[:, j], start)
        at = torch.where(accepted, number[:, j], at, out=states[:, j])
        moves += accepted
    # A block that has not moved yet is where the block before it ended.
    ends = states[:, -1].cummax(0).values
    before = torch.cat([torch.full_like(ends[:1], -1), ends[:-1]])
    torch.maximum(states, before[:, None], out=states)
    return states.view(-1, anchors)[:columns], start[-1], moves.sum(0)


def _block_starts(scores: Tensor, thresholds: Tensor, current: Tensor) -> Tensor:
    """(blocks, A) log score that each chain enters each block with."""
    threshold, score = thresholds[:, 0], torch.where(thresholds[:, 0] > -torch.inf, scores[:, 0], -torch.inf)
    for j in range(1, scores.shape[1]):
        passes = thresholds[:, j] > score
        threshold = torch.where(passes, torch.maximum(threshold, thresholds[:, j]), threshold)
        score = torch.where(passes, scores[:, j], score)
    starts = torch.empty_like(score)
    for block in range(len(starts)):
        starts[block] = current
        current = torch.where(threshold[block] > current, score[block], current)
    return starts
