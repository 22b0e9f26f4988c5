"""Batches that are consecutive slices of an order of samples."""

from abc import abstractmethod
from collections.abc import Iterator

from contrastive_zoo.batch_samplers.base import BatchSampler, Positions
from contrastive_zoo.checks import check_bool


class CutBatches(BatchSampler):
    """Batches that are consecutive slices of an order; subclasses define the order and the number of batches."""

    @abstractmethod
    def order(self) -> Positions:
        """The samples of this epoch, batch after batch; samples that do not fill a batch come last."""

    def batches(self, start: int) -> Iterator[Positions]:
        """See `BatchSampler.batches`."""
        order = self.order()
        for number in range(start, len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]


class Partition(CutBatches):
    """Disjoint batches; subclasses define the order of samples.

    Args:
        num_samples: Size of the dataset.
        batch_size: Samples in a global batch.
        seed: Random seed.
        drop_last: Whether to drop a last batch that is smaller than the batch size.
        num_replicas: Number of processes; by default the size of the process group when a pass begins, or 1 without a group.
        rank: Rank of this process; by default its rank in the process group when a pass begins, or 0 without a group.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: As in `BatchSampler`, or the last batch is too small to be shared among the processes.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.drop_last = check_bool("drop_last", drop_last)
        super().__init__(num_samples=num_samples, batch_size=batch_size, seed=seed, num_replicas=num_replicas, rank=rank)

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (0 if self.drop_last or rest == 0 else 1)
