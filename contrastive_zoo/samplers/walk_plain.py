"""Walks over a batch in operations of PyTorch, on every device; anchors in blocks, so that no (N, N) matrix is stored.

Shapes: N rows, D features, A anchors among the rows, R anchors of a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.samplers.chains import Chains, Columns, KeptStates
from contrastive_zoo.samplers.metropolis_hastings import Walk, blocks_of_anchors, log_thresholds
from contrastive_zoo.samplers.randomness import DrawTable


class _OwnColumns(NamedTuple):
    """Pairs of rows of the same sample, listed on the host, so that leaving them out costs little.

    Attributes:
        columns: Columns of the pairs, sorted by row.
        rows: Rows of the pairs.
    """

    columns: Tensor
    rows: Tensor

    @staticmethod
    def of(ids: Tensor) -> "_OwnColumns":
        ordered, order = ids.sort(stable=True)
        group = torch.searchsorted(ordered, ids)
        same = torch.searchsorted(ordered, ids, right=True) - group
        # Own columns of each row, padded to the largest group.
        rank = torch.arange(int(same.max()), device="cpu")
        rows, rank_among_same = (rank < same[:, None]).nonzero(as_tuple=True)
        return _OwnColumns(order[group[rows] + rank_among_same], rows)

    def fill(self, values: Tensor, rows: slice, value: float) -> None:
        """Overwrite the pairs in (N, R) values of a block of anchors."""
        low, high = torch.searchsorted(self.rows, torch.tensor([rows.start, rows.stop], device="cpu")).tolist()
        values[self.columns[low:high], self.rows[low:high] - rows.start] = value


class _OwnIds(NamedTuple):
    """Pairs of rows of the same sample on an accelerator, compared anew for each block, since listing them would wait.

    Attributes:
        ids: (N,) sample of each row.
    """

    ids: Tensor

    def fill(self, values: Tensor, rows: slice, value: float) -> None:
        """Overwrite the pairs in (N, R) values of a block of anchors."""
        values.masked_fill_(self.ids[:, None] == self.ids[rows], value)


class _Walks:
    """Walks of blocks of anchors.

    Args:
        chains: The chains.
    """

    def __init__(self, chains: Chains) -> None:
        self.chains, self.scale = chains, chains.scale.to(chains.x)
        self.columns = Columns.of(chains.ids, chains.burn_in)
        self.own = _OwnColumns.of(chains.ids) if chains.ids.is_cpu else _OwnIds(chains.ids)
        self.draws = None if chains.fused else DrawTable(chains.seed, chains.x.device)

    def blocks(self) -> list[tuple[slice, slice]]:
        """Rows of each block of anchors, and their places among the anchors."""
        x, first, count = self.chains.x, self.chains.first, len(self.chains.carried)
        rows = blocks_of_anchors(slice(first, first + count), len(x), x.device)
        return [(each, slice(each.start - first, each.stop - first)) for each in rows]

    def walk(self, rows: slice, place: slice) -> tuple[Walk, Tensor]:
        """The walk of a block, and the log-sum-exps of its scores."""
        assert self.draws is not None
        x = self.chains.x
        scores = x @ (x[rows] * self.scale).T
        self.own.fill(scores, rows, -torch.inf)
        log_sum = torch.logsumexp(scores, 0)
        log_uniforms = self.draws.uniform(slice(0, len(x)), rows, x.dtype).log_()
        return Walk.over(scores, log_thresholds(scores, log_uniforms), self.chains.carried[place]), log_sum

    def stays(self, walk: Walk, rows: slice) -> tuple[Tensor, Tensor]:
        """Number of kept columns that each anchor spent at each state, (N, R), and at its carried state, (R,)."""
        first_kept = self.columns.first_kept[rows]
        column = torch.arange(walk.columns, dtype=walk.accepted.dtype, device=first_kept.device)
        weight = column[:, None].repeat(1, len(first_kept))
        weight.ge_(first_kept.to(weight.dtype))
        self.own.fill(weight, rows, 0)
        return walk.stays(weight)


def forward(chains: Chains) -> tuple[KeptStates, Tensor]:
    """The results, and the gradient of the sum of similarities if ``uniform``."""
    walks, x, carried = _Walks(chains), chains.x, chains.carried
    similarity, carried_share, log_score, log_mean, acceptance = (x.new_empty(len(carried)) for _ in range(5))
    state = torch.empty(len(carried), dtype=torch.int64, device=x.device)
    gradient = torch.zeros_like(x) if chains.uniform else x.new_empty(0)
    for rows, place in walks.blocks():
        walk, log_sum = walks.walk(rows, place)
        stays, carried_stay = walks.stays(walk, rows)
        kept, valid = walks.columns.kept[rows], walks.columns.valid[rows].clamp_min(1)
        mean = stays.T @ x / kept[:, None]
        similarity[place] = torch.linalg.vecdot(mean, x[rows])
        carried_share[place] = carried_stay / kept
        state[place], log_score[place] = walk.end(), walk.log_score
        log_mean[place], acceptance[place] = log_sum - valid.to(x.dtype).log(), walk.moves() / valid
        if chains.uniform:
            gradient[rows] += mean
            gradient.addmm_(stays, x[rows] / kept[:, None])
    return KeptStates(similarity, carried_share, state, log_score, log_mean, acceptance), gradient


def backward(chains: Chains, grad: Tensor) -> Tensor:
    """Gradient of x for any upstream gradient of the similarities, by repeating the walk."""
    walks, x = _Walks(chains), chains.x
    gradient = torch.zeros_like(x)
    for rows, place in walks.blocks():
        walk, _ = walks.walk(rows, place)
        weight = (grad[place] / walks.columns.kept[rows])[:, None]
        stays, _ = walks.stays(walk, rows)
        gradient[rows] += weight * (stays.T @ x)
        gradient.addmm_(stays, weight * x[rows])
    return gradient


def shares(chains: Chains, moves: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fractions of the kept states, (N, N) per anchor and row, and (N,) of the carried states, if all rows are anchors.

    Args:
        chains: The chains.
        moves: (N, N) whether each chain, a column, moved to each row; None to walk again.
    """
    walks, x = _Walks(chains), chains.x
    of_rows, of_carried = x.new_empty(len(x), len(x)), x.new_empty(len(x))
    for rows, place in walks.blocks():
        walk = walks.walk(rows, place)[0] if moves is None else Walk.of_moves(moves[:, rows].to(x.dtype))
        stays, carried_stay = walks.stays(walk, rows)
        kept = walks.columns.kept[rows]
        of_rows[rows], of_carried[rows] = (stays / kept).T, carried_stay / kept
    return of_rows, of_carried
