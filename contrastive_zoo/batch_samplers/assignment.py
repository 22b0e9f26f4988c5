"""Samples to centres of equal capacity at the least total cost."""

from itertools import pairwise
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Labels = np.ndarray[Any, np.dtype[np.int64]]


def balanced_assignment(cost: Matrix) -> Labels:
    r"""The centre of each sample: every centre gets equally many, and $\sum_i \mathrm{cost}_{i, \mathrm{centre}(i)}$ is least.

    Every sample starts at its cheapest centre. While one holds too many, a sample leaves along the cheapest path of moves to
    a centre that has room: successive shortest paths in a graph of centres only. This is the optimum of the linear assignment
    to copies of the centres, which is a much larger problem when there are few centres.

    Args:
        cost: (n, K) with K dividing n, finite.

    Returns:
        (n,) from 0 to K - 1.

    Examples:
        >>> import numpy as np
        >>> balanced_assignment(np.array([[0.0, 9.0], [1.0, 3.0], [0.0, 5.0], [2.0, 1.0]]))
        array([0, 1, 0, 1])
    """
    moves = _Moves(cost)
    capacity = len(cost) // cost.shape[1]
    while (moves.load > capacity).any():
        moves.take(_cheapest_path(moves.price, moves.load > capacity, moves.load < capacity, moves.resolution))
    return moves.centre


class _Moves:
    """Where the samples are, and for every two centres the sample whose move from one to the other costs least."""

    def __init__(self, cost: Matrix) -> None:
        _, centres = cost.shape
        self.cost = cost
        self.centre = cost.argmin(1)
        self.load = np.bincount(self.centre, minlength=centres)
        self.resolution = 1e-12 * max(1.0, float(np.abs(cost).max()))
        self.price = np.full((centres, centres), np.inf)
        self.sample = np.zeros((centres, centres), dtype=np.int64)
        for a in range(centres):
            self._update(a)

    def _update(self, a: int) -> None:
        members = np.flatnonzero(self.centre == a)
        if len(members):
            extra = self.cost[members] - self.cost[members, a, None]
            cheapest = extra.argmin(0)
            self.price[a] = extra[cheapest, np.arange(len(self.load))]
            self.sample[a] = members[cheapest]
        else:
            self.price[a] = np.inf

    def take(self, path: list[int]) -> None:
        """One sample moves along each step of a path of centres."""
        movers = [self.sample[a, b] for a, b in pairwise(path)]
        self.centre[movers] = path[1:]
        self.load[path[0]] -= 1
        self.load[path[-1]] += 1
        for a in path:
            self._update(a)


def _cheapest_path(price: Matrix, full: Any, free: Any, resolution: float) -> list[int]:
    """Centres from a full one to a free one, by Bellman and Ford: prices may be negative, cycles are not."""
    total = np.where(full, 0.0, np.inf)
    before = np.full(len(total), -1)
    for _ in range(len(total)):
        through = total[:, None] + price
        best = through.argmin(0)
        offered = through[best, np.arange(len(total))]
        better = offered < total - resolution
        if not better.any():
            break
        total[better], before[better] = offered[better], best[better]
    path = [int(np.where(free, total, np.inf).argmin())]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1]
