"""Partitions of the dataset into batches: shuffled every epoch, fixed, or a single batch.

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906
"""

import numpy as np

from contrastive_zoo.batch_samplers.base import Positions
from contrastive_zoo.batch_samplers.cuts import Partition
from contrastive_zoo.checks import check_count
from contrastive_zoo.registry import batch_samplers

PAPER = "Cho et al., 2023. arXiv:2307.05906"


@batch_samplers.register(
    "shuffle", title="Shuffled batches", summary="A new random partition every epoch.", paper=PAPER, draws=True
)
class ShuffledBatches(Partition):
    """A new random partition every epoch; see `Partition` for the arguments.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> len(list(zoo.get_batch_sampler("shuffle", num_samples=10, batch_size=3)))
        3
    """

    def order(self) -> Positions:
        """See `Partition.order`."""
        return self.generator().permutation(self.num_samples)


@batch_samplers.register(
    "fixed", title="Fixed batches", summary="One random partition for all epochs.", paper=PAPER, draws=True
)
class FixedBatches(Partition):
    """One random partition for all epochs; see `Partition` for the arguments.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_batch_sampler("fixed", num_samples=10, batch_size=5)
        >>> list(sampler) == list(sampler)
        True
    """

    def order(self) -> Positions:
        """See `Partition.order`."""
        return np.random.default_rng(self.seed).permutation(self.num_samples)


@batch_samplers.register("full", title="Full batch", summary="All samples in one batch.", paper=PAPER)
class FullBatch(Partition):
    """All samples in one batch; see `Partition` for the arguments. ``batch_size`` may be left out.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> list(zoo.get_batch_sampler("full", num_samples=4))
        [[0, 1, 2, 3]]
    """

    equal_shares = False

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        size = check_count("num_samples", num_samples)
        if batch_size is not None and check_count("batch_size", batch_size) != size:
            raise ValueError(f"batch_size of the full batch is num_samples = {size}, got {batch_size}. Leave it out.")
        super().__init__(num_samples=size, batch_size=size, seed=seed, num_replicas=num_replicas, rank=rank)

    def order(self) -> Positions:
        """See `Partition.order`."""
        return np.arange(self.num_samples)
