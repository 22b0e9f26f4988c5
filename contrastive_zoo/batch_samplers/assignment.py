"""Assigns samples to centres of equal capacity at minimal total cost."""

from itertools import pairwise
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

# A round of prices takes as long as five shortest paths; six rounds leave 5% of the excess.
PRICE_ROUNDS, PRICE_STEP = 6, 0.9


def balanced_assignment(cost: Matrix) -> Labels:
    r"""The centre of each sample, with equally many per centre and minimal $\sum_i \mathrm{cost}_{i, \mathrm{centre}(i)}$.

    First, prices of the centres are chosen such that few centres are over capacity when every sample takes its cheapest centre.
    While a centre is over capacity, a sample is moved along the cheapest path of moves to a centre with room: successive
    shortest paths in a graph of centres only. The result is the optimum of the linear assignment to copies of the centres,
    which is a much larger problem if there are few centres.

    Args:
        cost: (n, K) with K dividing n, finite.

    Returns:
        (n,) from 0 to K - 1.

    Examples:
        >>> import numpy as np
        >>> balanced_assignment(np.array([[0.0, 9.0], [1.0, 3.0], [0.0, 5.0], [2.0, 1.0]]))
        array([0, 1, 0, 1])
    """
    capacity = len(cost) // cost.shape[1]
    moves = _Moves(cost, (cost + _prices(cost, capacity)).argmin(1))
    while (moves.load > capacity).any():
        moves.take(_cheapest_path(moves.cheapest, moves.load > capacity, moves.load < capacity, moves.resolution))
    return moves.centre


def _prices(cost: Matrix, capacity: int) -> Matrix:
    """Prices (K,) at which each centre gets approximately its share, after a few rounds of updates."""
    n, centres = cost.shape
    price, rows = np.zeros(centres), np.arange(n)
    for _ in range(PRICE_ROUNDS if centres > 1 else 0):
        offers = cost + price
        first = offers.argmin(1)
        lowest = offers[rows, first]
        offers[rows, first] = np.inf
        # Highest price at which a centre stays a sample's cheapest; at the capacity-th largest the centre gets its share.
        bearable = lowest[:, None] - cost
        bearable[rows, first] = offers.min(1) - cost[rows, first]
        middle = np.partition(bearable.T, (n - capacity - 1, n - capacity))[:, n - capacity - 1 : n - capacity + 1].mean(1)
        price += PRICE_STEP * (middle - price)
    return price


class _Moves:
    """The current assignment, and for every pair of centres the sample whose move between them is cheapest."""

    def __init__(self, cost: Matrix, centre: Labels) -> None:
        centres = cost.shape[1]
        self.cost = cost
        self.centre = centre
        self.load = np.bincount(self.centre, minlength=centres)
        self.resolution = 1e-12 * max(1.0, float(np.abs(cost).max()))
        self.cheapest = np.full((centres, centres), np.inf)
        self.sample = np.zeros((centres, centres), dtype=np.int64)
        for a in range(centres):
            self._update(a)

    def _update(self, a: int) -> None:
        members = np.flatnonzero(self.centre == a)
        if len(members):
            extra = self.cost[members] - self.cost[members, a, None]
            cheapest = extra.argmin(0)
            self.cheapest[a] = extra[cheapest, np.arange(len(self.load))]
            self.sample[a] = members[cheapest]
        else:
            self.cheapest[a] = np.inf

    def take(self, path: list[int]) -> None:
        """Move one sample along each step of a path of centres."""
        movers = [self.sample[a, b] for a, b in pairwise(path)]
        self.centre[movers] = path[1:]
        self.load[path[0]] -= 1
        self.load[path[-1]] += 1
        for a in path:
            self._update(a)


def _cheapest_path(cheapest: Matrix, full: Any, free: Any, resolution: float) -> list[int]:
    """Cheapest path from a full to a free centre, by Bellman-Ford: moves may have negative cost, but no cycle has."""
    total = np.where(full, 0.0, np.inf)
    before = np.full(len(total), -1)
    for _ in range(len(total)):
        through = total[:, None] + cheapest
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
