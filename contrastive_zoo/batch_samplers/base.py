"""What all batch samplers share: passes, seeds, processes, state."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from contrastive_zoo.checks import check_count

Positions = np.ndarray[Any, np.dtype[np.int64]]


def check_replica(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """The number of processes and this one's, of the initialised process group where they are not given.

    Raises:
        TypeError: A value is no whole number.
        ValueError: The rank is not below the number of processes.
    """
    grouped = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if grouped else 1
    if rank is None:
        rank = dist.get_rank() if grouped else 0
    check_count("num_replicas", num_replicas)
    if check_count("rank", rank, low=0) >= num_replicas:
        raise ValueError(f"rank must be below num_replicas = {num_replicas}, got {rank}.")
    return num_replicas, rank


class BatchSampler(Sampler[list[int]], ABC):
    """Lists of positions in the data set, one list a batch; subclasses say which, for all processes together.

    Every process makes the same global batches from the same seed and takes its slice of each. Every pass is a new epoch, also
    after one that was broken off; `set_epoch` says which. The first pass after `load_state_dict` goes on where the state was
    taken.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples in a global batch.
        seed: Seed of all draws.
        num_replicas: Number of processes; by default that of the initialised process group, or 1.
        rank: This process; by default its rank in the initialised process group, or 0.

    Attributes:
        needs_features: Whether `refresh` is wanted before a pass.

    Raises:
        TypeError: A value is no whole number.
        ValueError: The batch is larger than the data set, or not divisible by the number of processes, or rank is out of range.
    """

    needs_features = False

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.num_samples = check_count("num_samples", num_samples)
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, low=0)
        self.num_replicas, self.rank = check_replica(num_replicas, rank)
        if batch_size > num_samples:
            raise ValueError(f"batch_size is {batch_size} but there are {num_samples} samples. Take a smaller batch.")
        if batch_size % self.num_replicas:
            raise ValueError(f"batch_size {batch_size} is not divisible by num_replicas {self.num_replicas}.")
        self.epoch = 0
        self._handed_out = 0
        self._begun = self._finished = False

    @abstractmethod
    def batches(self, start: int) -> Iterator[Positions]:
        """The global batches of this epoch from number ``start`` on, (batch_size,) each."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    def generator(self) -> "np.random.Generator":
        """Draws of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch; distributed training loops call this.

        The epoch of a state that was just loaded is gone on with, every other one starts with its first batch.
        """
        check_count("epoch", epoch, low=0)
        if self._begun or epoch != self.epoch:
            self._handed_out = 0
        self.epoch = epoch
        self._begun = self._finished = False

    def refresh(self, z1: Tensor, z2: Tensor, index: Tensor) -> None:
        """Take note of new features; does nothing for samplers that need none."""

    def __iter__(self) -> Iterator[list[int]]:
        # Nothing happens before the first batch is asked for: a DataLoader with workers makes two iterators and uses one.
        if self._begun:
            self.epoch, self._handed_out = self.epoch + 1, 0
        self._begun, self._finished = True, False
        start = self._handed_out
        for number, batch in enumerate(self.batches(start), start):
            self._handed_out = number + 1
            yield np.array_split(batch, self.num_replicas)[self.rank].tolist()
        self._finished = True

    def state_dict(self, batches_seen: int | None = None) -> dict[str, Any]:
        """What a new sampler needs to go on from here; the same on all processes, and loadable on another number of them.

        Args:
            batches_seen: Batches of this epoch that training is done with. By default those that were handed out, which is
                right unless somebody fetches ahead: a DataLoader with ``num_workers > 0`` asks for batches long before it
                returns them, so count them in the training loop and say here how many there were.

        Raises:
            ValueError: An epoch has fewer batches.
        """
        epoch, seen = self.epoch, self._handed_out
        if batches_seen is not None:
            seen = check_count("batches_seen", batches_seen, low=0)
            if seen > len(self):
                raise ValueError(f"batches_seen is {seen} but an epoch has {len(self)} batches. Count from 0 in every epoch.")
        elif self._finished:
            epoch, seen = epoch + 1, 0
        size = {"num_samples": self.num_samples, "batch_size": self.batch_size}
        return {"epoch": epoch, "batches_seen": seen, "seed": self.seed, **size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a sampler with that state was.

        Raises:
            ValueError: The state is of a data set or a batch of another size.
        """
        for name in ("num_samples", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name} of the state is {state[name]}, of this sampler {getattr(self, name)}. Make them equal."
                )
        self.epoch, self._handed_out, self.seed = state["epoch"], state["batches_seen"], state["seed"]
        self._begun = self._finished = False


class CutBatches(BatchSampler):
    """Batches cut from an order of samples; subclasses give the order and the number of batches."""

    @abstractmethod
    def order(self) -> Positions:
        """The samples of this epoch, batch after batch; what does not fill a batch comes last."""

    def batches(self, start: int) -> Iterator[Positions]:
        """See `BatchSampler.batches`."""
        order = self.order()
        for number in range(start, len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]


class Partition(CutBatches):
    """Batches of which no two share a sample; subclasses give the order that they are cut from.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples in a global batch.
        seed: Seed of all draws.
        drop_last: Whether to leave out the rest that does not fill a batch.
        num_replicas: Number of processes; by default that of the initialised process group, or 1.
        rank: This process; by default its rank in the initialised process group, or 0.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: As in `BatchSampler`, or the rest is too small to be shared among the processes.
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
        super().__init__(num_samples=num_samples, batch_size=batch_size, seed=seed, num_replicas=num_replicas, rank=rank)
        rest = 0 if drop_last else num_samples % batch_size
        if 0 < rest < self.num_replicas:
            raise ValueError(
                f"drop_last=False leaves a last batch of {rest} samples, fewer than num_replicas = {self.num_replicas}: "
                "a process would get none. Pass drop_last=True."
            )
        self.drop_last = drop_last

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (0 if self.drop_last or rest == 0 else 1)
