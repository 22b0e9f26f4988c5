"""Batches that part the data set: shuffled every epoch, fixed, or one.

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023, section 5. arXiv:2307.05906
"""

from typing import Any

import numpy as np

from contrastive_zoo.batch_samplers.base import BatchSampler, check_replica
from contrastive_zoo.registry import batch_samplers

PAPER = "Cho et al., 2023. arXiv:2307.05906"


@batch_samplers.register(
    "shuffle", title="Shuffled batches", summary="A new random partition every epoch.", paper=PAPER, draws=True
)
class ShuffledBatches(BatchSampler):
    """A new random partition every epoch; see `BatchSampler` for the arguments.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> len(list(zoo.get_batch_sampler("shuffle", num_samples=10, batch_size=3)))
        3
    """

    def batches(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """See `BatchSampler.batches`."""
        return self.generator().permutation(self.num_samples)


@batch_samplers.register(
    "fixed", title="Fixed batches", summary="One random partition for all epochs.", paper=PAPER, draws=True
)
class FixedBatches(BatchSampler):
    """One random partition for all epochs; see `BatchSampler` for the arguments.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_batch_sampler("fixed", num_samples=10, batch_size=5)
        >>> list(sampler) == list(sampler)
        True
    """

    def batches(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """See `BatchSampler.batches`."""
        return np.random.default_rng(self.seed).permutation(self.num_samples)


@batch_samplers.register("full", title="Full batch", summary="All samples in one batch.", paper=PAPER)
class FullBatch(BatchSampler):
    """All samples in one batch; see `BatchSampler` for the arguments, of which the batch size is the data set's.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> list(zoo.get_batch_sampler("full", num_samples=4))
        [[0, 1, 2, 3]]
    """

    def __init__(
        self, *, num_samples: int, batch_size: int | None = None, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        size = num_samples if batch_size is None else batch_size
        if size != num_samples:
            raise ValueError(f"batch_size of the full batch is num_samples = {num_samples}, got {size}. Leave it out.")
        # Processes take slices as equal as they can be, so the size need not be divisible by their number.
        super().__init__(num_samples=num_samples, batch_size=num_samples, seed=seed, drop_last=False)
        self.num_replicas, self.rank = check_replica(num_replicas, rank)

    def batches(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """See `BatchSampler.batches`."""
        return np.arange(self.num_samples)
