"""What all batch samplers share: epochs, seeds, processes, state."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from contrastive_zoo.checks import check_count


def check_replica(num_replicas: int, rank: int) -> tuple[int, int]:
    """The number of processes and this one's; raises unless they are whole numbers and the second is below the first."""
    check_count("num_replicas", num_replicas)
    if check_count("rank", rank, low=0) >= num_replicas:
        raise ValueError(f"rank must be below num_replicas = {num_replicas}, got {rank}.")
    return num_replicas, rank


class BatchSampler(Sampler[list[int]], ABC):
    """Lists of positions, one list a batch; subclasses say which, for all processes together, in `batches`.

    Every process makes the same global batches from the same seed and takes its slice of each. Resuming in the middle of an
    epoch goes on with the batch after the last one drawn.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples in a global batch.
        seed: Seed of all draws.
        drop_last: Whether to leave out the rest that does not fill a batch.
        num_replicas: Number of processes.
        rank: This process.

    Raises:
        TypeError: A value is no whole number.
        ValueError: The batch is larger than the data set, or not divisible by the number of processes, or rank is out of range.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self.num_samples = check_count("num_samples", num_samples)
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, low=0)
        self.num_replicas, self.rank = check_replica(num_replicas, rank)
        self.drop_last = drop_last
        if batch_size > num_samples:
            raise ValueError(f"batch_size is {batch_size} but there are {num_samples} samples. Take a smaller batch.")
        if batch_size % num_replicas:
            raise ValueError(f"batch_size {batch_size} is not divisible by num_replicas {num_replicas}.")
        self.epoch = 0
        self.drawn = 0

    @abstractmethod
    def batches(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Order of the samples in this epoch, (num_samples,); batches are cut from it."""

    def generator(self) -> np.random.Generator:
        """Draws of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch anew; distributed training loops call this."""
        self.epoch = check_count("epoch", epoch, low=0)
        self.drawn = 0

    def refresh(self, z1: Tensor, z2: Tensor, index: Tensor) -> None:
        """Take note of new features; does nothing for samplers that need none."""

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (0 if self.drop_last or rest == 0 else 1)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.batches()
        start, self.drawn = self.drawn, 0
        for number in range(start, len(self)):
            self.drawn = number + 1
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()
        self.epoch, self.drawn = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches drawn in it."""
        return {"epoch": self.epoch, "drawn": self.drawn, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a sampler with that state was."""
        self.epoch, self.drawn, self.seed = state["epoch"], state["drawn"], state["seed"]
