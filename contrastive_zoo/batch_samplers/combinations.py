"""All N-choose-B batches in a pseudo-random order, each computed from its number.

Mini-batch training on all N-choose-B batches has the minimisers of the full batch; training on a partition does not.

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from contrastive_zoo.batch_samplers.base import BatchSampler, Positions
from contrastive_zoo.checks import check_count
from contrastive_zoo.registry import batch_samplers

ROUNDS = 10


def unrank_combination(rank: int, num_samples: int, size: int) -> list[int]:
    r"""The combination of a given rank, in the combinatorial number system.

    $$\mathrm{rank} = \binom{c_1}{1} + \dots + \binom{c_B}{B}, \qquad 0 \le c_1 < \dots < c_B < N$$

    Args:
        rank: From 0 to N-choose-B, exclusive.
        num_samples: N.
        size: B.

    Returns:
        $c_B > \dots > c_1$, B positions in descending order.

    Examples:
        >>> from math import comb
        >>> unrank_combination(0, num_samples=6, size=3), unrank_combination(comb(6, 3) - 1, num_samples=6, size=3)
        ([2, 1, 0], [5, 4, 3])
    """
    positions = []
    below = num_samples
    for k in range(size, 0, -1):
        below = _largest_fitting(rank, k, below)
        rank -= math.comb(below, k)
        positions.append(below)
    return positions


def _largest_fitting(rank: int, k: int, below: int) -> int:
    """The largest c < below with comb(c, k) <= rank, by bisection between bounds."""
    if rank == 0:
        return k - 1
    # c^k >= c (c-1) ... (c-k+1) = k! comb(c, k) >= (c-k+1)^k, with room for the rounding of logarithms.
    root = math.exp((math.log(rank) + math.lgamma(k + 1)) / k)
    low, high = max(k - 1, int(root * (1 - 1e-9))), min(below, int(root * (1 + 1e-9)) + k + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if math.comb(middle, k) <= rank else (low, middle)
    return low


def permuted(number: int, size: int, key: str) -> int:
    """Image of ``number`` under a pseudo-random permutation of 0, ..., size - 1, for an arbitrarily large size.

    Uses a balanced Feistel network on the next even number of bits, applied again to results outside the range.

    Examples:
        >>> sorted(permuted(number, 20, "key") for number in range(20)) == list(range(20))
        True
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = number >> half, number & ((1 << half) - 1)
        for turn in range(ROUNDS):
            left, right = right, left ^ _mixed(right, half, f"{key} {turn}")
        number = left << half | right
        if number < size:
            return number


def _mixed(value: int, bits: int, key: str) -> int:
    """A pseudo-random number of ``bits`` bits, determined by value and key."""
    length = (bits + 7) // 8
    digest = hashlib.shake_256(key.encode() + b" " + value.to_bytes(length, "little")).digest(length)
    return int.from_bytes(digest, "little") & ((1 << bits) - 1)


@batch_samplers.register(
    "combinations",
    title="All N-choose-B batches",
    summary="All N-choose-B batches in a pseudo-random order, without repetition until all were used.",
    paper="Cho et al., 2023. arXiv:2307.05906",
    draws=True,
    scale="The authors average over all batches at once, or draw them one by one with repetition.",
)
class CombinationBatches(BatchSampler):
    r"""All $\binom{N}{B}$ batches in a pseudo-random order, without repetition until all were used.

    The batches are never listed: batch t is the combination whose rank is $\pi(t)$, for a pseudo-random permutation $\pi$.
    Each epoch continues where the previous epoch ended. Once all batches were used, a new order begins. Two batches of an epoch
    may share samples.

    Args:
        num_samples: N, size of the dataset.
        batch_size: B, samples in a global batch.
        batches_per_epoch: By default N // B, as many as in a partition.
        seed: Random seed of the order.
        num_replicas: Number of processes; by default the size of the process group when a pass begins, or 1 without a group.
        rank: Rank of this process; by default its rank in the process group when a pass begins, or 0 without a group.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_batch_sampler("combinations", num_samples=4, batch_size=2, batches_per_epoch=6)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(num_samples=num_samples, batch_size=batch_size, seed=seed, num_replicas=num_replicas, rank=rank)
        wanted = self.num_samples // self.batch_size if batches_per_epoch is None else batches_per_epoch
        self.batches_per_epoch = check_count("batches_per_epoch", wanted)
        self.combinations = math.comb(self.num_samples, self.batch_size)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def batches(self, start: int) -> Iterator[Positions]:
        """See `BatchSampler.batches`."""
        first = self.epoch * self.batches_per_epoch
        for number in range(first + start, first + self.batches_per_epoch):
            yield self._batch(number)

    def _batch(self, number: int) -> Positions:
        turn, place = divmod(number, self.combinations)
        rank = permuted(place, self.combinations, f"{self.seed} {turn}")
        batch = np.array(unrank_combination(rank, self.num_samples, self.batch_size), dtype=np.int64)
        # Processes take slices: without shuffling, the first process would always get the highest positions.
        return np.random.default_rng([self.seed, number]).permutation(batch)
