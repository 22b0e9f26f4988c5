r"""Metropolis-Hastings over columns of scores, without a step per column.

A chain at log score c moves to column j, with log score x_j, if log(uniform_j) < x_j - c, that is, if c < t_j for the threshold
t_j = x_j - log(uniform_j) >= x_j. A column therefore maps every score below t_j to x_j, and consecutive columns compose to
a map of this kind: every score below the largest t maps to the end of the *free* chain, which starts at -inf. From the first
t_j > c on, the chain from c coincides with the free chain. So columns are split into blocks, the free chains of all blocks are
computed in parallel, the chain itself is computed once per block, and the running maximum of t gives its state inside a block.

Shapes: A anchors (chains), M columns, W columns per block.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import shape


def metropolis_hastings(
    log_scores: Tensor, log_current: Tensor, uniforms: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Walk a chain for every row over all columns in order, accepting column j if $\log u_j < x_j - c$.

    Args:
        log_scores: (B, M) log scores x; -inf columns are never accepted.
        log_current: (B,) log score c of the carried state; -inf if there is none.
        uniforms: (B, M) draws from [0, 1).
        state: (B,) int64 initial states, to continue a scan over more columns; by default -1, the carried state.

    Returns:
        (B, M) int64 state after each column, the number of a column or the initial state; and (B,) the log score at the end.

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
    states = torch.empty(log_scores.shape, dtype=torch.int64, device=log_scores.device)
    log_score = torch.empty_like(log_current)
    anchors, columns = log_scores.shape
    for rows in blocks_of_anchors(slice(0, anchors), columns, log_scores.device):
        thresholds = log_thresholds(log_scores[rows], uniforms[rows].log())
        walk = Walk.over(_columns_first(log_scores[rows]), _columns_first(thresholds), log_current[rows])
        states[rows].copy_(walk.numbers().T).sub_(1)
        log_score[rows] = walk.log_score
    if state is not None:
        states = torch.where(states < 0, state[:, None].to(states), states)
    return states, log_score


def _columns_first(values: Tensor) -> Tensor:
    return values.T.clone(memory_format=torch.contiguous_format)


def blocks_of_anchors(anchors: slice, columns: int, device: torch.device) -> list[slice]:
    """Blocks of anchors that walk together; on a CPU small enough for the walk to stay in the cache."""
    size = max(1, BLOCK_NUMEL[device.type == "cpu"] // max(columns, 1))
    return [slice(start, min(start + size, anchors.stop)) for start in range(anchors.start, anchors.stop, size)]


def log_thresholds(log_scores: Tensor, log_uniforms: Tensor) -> Tensor:
    """Thresholds of the columns: a chain moves if its log score is below the threshold; overwrites the logs of the draws."""
    # A draw of 0 must accept every finite score but not -inf, so its logarithm must be finite.
    return torch.sub(log_scores, log_uniforms.clamp_(min=torch.finfo(log_uniforms.dtype).min), out=log_uniforms)


# Scores per block of anchors, on accelerators and on CPUs.
BLOCK_NUMEL = 2**20, 2**18


def _blocks_of_columns(columns: int) -> tuple[int, int]:
    """Number of blocks of columns, and their width."""
    width = max(1, math.isqrt(columns // 2))
    return max(1, -(-columns // width)), width


class Walk(NamedTuple):
    """Paths of A chains over M columns, padded to whole blocks.

    Attributes:
        accepted: (blocks, W, A) 1.0 where the chain moved to the column, else 0.0.
        moved: (blocks, W, A) 1.0 where the chain has moved in this block, by this column.
        log_score: (A,) log score at the end.
        columns: Number of columns, M.
    """

    accepted: Tensor
    moved: Tensor
    log_score: Tensor
    columns: int

    @staticmethod
    def over(scores: Tensor, thresholds: Tensor, current: Tensor) -> "Walk":
        """Walk from the log scores ``current`` (A,); overwrites (M, A) scores and thresholds.

        A threshold of -inf is never accepted.
        """
        columns, anchors = scores.shape
        lowest = torch.finfo(scores.dtype).min / 2
        blocks, width = _blocks_of_columns(columns)
        padding = (0, 0, 0, blocks * width - columns)
        if padding[3]:
            scores = torch.nn.functional.pad(scores, padding)
            thresholds = torch.nn.functional.pad(thresholds, padding, value=-torch.inf)
        # lerp with weight 0 or 1 is an exact, vectorised choice as long as both ends are finite.
        scores = scores.clamp_(min=lowest).view(blocks, width, anchors)
        accepted = thresholds.view(blocks, width, anchors)
        highest = torch.empty_like(accepted)
        free = scores.new_full((blocks, anchors), lowest)
        top = torch.full_like(free, -torch.inf)
        for j in range(width):
            top = torch.maximum(top, accepted[:, j], out=highest[:, j])
            free.lerp_(scores[:, j], accepted[:, j].gt_(free))
        starts = [current.clamp(min=lowest)]
        for end, top in zip(free.unbind(0), highest[:, -1].unbind(0), strict=True):
            starts.append(torch.where(top > starts[-1], end, starts[-1]))
        current = starts.pop()
        moved = highest.gt_(torch.stack(starts)[:, None])
        return Walk(accepted.mul_(moved), moved, torch.where(current > lowest, current, -torch.inf), columns)

    @staticmethod
    def of_moves(moves: Tensor) -> "Walk":
        """The walk of known moves, (M, A) 1.0 where a chain moved to a column, else 0.0; its log scores are NaN."""
        columns, anchors = moves.shape
        blocks, width = _blocks_of_columns(columns)
        accepted = torch.nn.functional.pad(moves, (0, 0, 0, blocks * width - columns)).view(blocks, width, anchors)
        return Walk(accepted, accepted.cummax(1).values, moves.new_full((anchors,), torch.nan), columns)

    def _numbered(self) -> Tensor:
        """(blocks, W, A) number of the column, from 1 on, where the chain moved to it, else 0; exact up to 2^24 columns."""
        blocks, width, _ = self.accepted.shape
        number = torch.arange(1, blocks * width + 1, dtype=self.accepted.dtype, device=self.accepted.device)
        return self.accepted * number.view(blocks, width, 1)

    def numbers(self) -> Tensor:
        """(M, A) state of each chain after each column, as a column number from 1 on; 0 before the first move."""
        at = self._numbered()
        for before, now in pairwise(at.unbind(1)):
            torch.maximum(now, before, out=now)
        ends = at[:, -1].cummax(0).values
        torch.maximum(at[1:], ends[:-1, None], out=at[1:])
        return at.flatten(0, 1)[: self.columns]

    def end(self) -> Tensor:
        """(A,) int64 final column of each chain, -1 for a chain that never moved."""
        return self._numbered().amax((0, 1)).long() - 1

    def moves(self) -> Tensor:
        """(A,) number of moves."""
        return self.accepted.sum((0, 1))

    def stays(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Total weight of the columns that a chain spent at each state.

        Args:
            weight: (M, A) weight of each column.

        Returns:
            (M, A) weight of each column as a state; (A,) weight of the carried state.
        """
        blocks, width, anchors = self.accepted.shape
        padding = blocks * width - self.columns
        weight = torch.nn.functional.pad(weight, (0, 0, 0, padding)) if padding else weight
        weight = weight.view(blocks, width, anchors)
        # The weight before a block's first move belongs to the last state of an earlier block.
        waiting = (weight.sum(1) - (weight * self.moved).sum(1)).unbind(0)
        never = (1 - self.moved[:, -1]).unbind(0)
        stay = torch.empty_like(weight[:, 0])
        carry = torch.zeros_like(waiting[0])
        for block in reversed(range(blocks)):
            stay[block] = carry
            carry = torch.addcmul(waiting[block], never[block], carry)
        result = torch.empty_like(weight)
        for column, accepted, out in zip(*(t.unbind(1)[::-1] for t in (weight, self.accepted, result)), strict=True):
            stay += column
            stay -= torch.mul(stay, accepted, out=out)
        return result.flatten(0, 1)[: self.columns], carry
