"""The base class of all batch samplers: passes, seeds, processes, state."""

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from contrastive_zoo.batch_samplers import trainers
from contrastive_zoo.batch_samplers.passes import Pass, Passes, grouped, own_share
from contrastive_zoo.checks import check_at_most, check_count

Positions = np.ndarray[Any, np.dtype[np.int64]]
S = TypeVar("S", bound="BatchSampler")


class BatchSampler(Sampler[list[int]], ABC):
    """Yields lists of positions in the dataset, one list per batch; subclasses define the global batches of all processes.

    All processes make the same global batches from the same seed; each takes its slice of a batch. Every pass is a new epoch,
    even if the previous pass was interrupted; `set_epoch` sets the epoch. The first pass after `load_state_dict` continues
    where the state was taken. A pass keeps its own epoch and position: a second pass over the same sampler, for example for
    validation, does not change the first.

    Args:
        num_samples: Size of the dataset.
        batch_size: Samples in a global batch.
        seed: Random seed.
        num_replicas: Number of processes; by default the size of the process group when a pass begins, or 1 without a group.
        rank: Rank of this process; by default its rank in the process group when a pass begins, or 0 without a group.

    Attributes:
        needs_features: Whether `refresh` must be called before a pass.
        drop_last: Whether to drop a last batch that is smaller than the batch size.
        equal_shares: Whether all processes must get equally many samples of a full batch.
        state_names: Keys of the state.

    Raises:
        TypeError: A value is no whole number.
        ValueError: The batch is larger than the dataset, or not divisible by the number of processes, or rank is out of range.
    """

    needs_features = False
    drop_last = True
    equal_shares = True
    state_names: tuple[str, ...] = ("epoch", "batches_seen", "seed", "num_samples", "batch_size")

    def __new__(cls: type[S], *args: Any, **params: Any) -> S:
        """Raise if a trainer rebuilds the batch sampler."""
        if args:
            trainers.refuse_rebuilding(cls.__name__)
        return super().__new__(cls)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = inspect.signature(cls.__init__)  # __new__ would hide it
        cls.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]

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
        self._given = (
            None if num_replicas is None else check_count("num_replicas", num_replicas),
            None if rank is None else check_count("rank", rank, low=0),
        )
        check_at_most("batch_size", self.batch_size, "num_samples", self.num_samples)
        self.check_processes(self.num_replicas)
        if None not in self._given or grouped():
            self._share()
        self._passes = Passes()

    @abstractmethod
    def batches(self, start: int) -> Iterator[Positions]:
        """The global batches of this epoch from number ``start`` on, (batch_size,) each."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @property
    def epoch(self) -> int:
        """Epoch of the pass that last yielded a batch; after `set_epoch` or `load_state_dict`, epoch of the next pass."""
        return self._passes.current.epoch

    @property
    def num_replicas(self) -> int:
        """Number of processes: as given, or the size of the process group."""
        given = self._given[0]
        return own_share(None, None)[0] if given is None else given

    @property
    def rank(self) -> int:
        """Rank of this process: as given, or its rank in the process group."""
        return own_share(*self._given)[1]

    @property
    def sampler(self) -> trainers.EpochRelay:
        """Object on which trainers set the epoch."""
        return trainers.EpochRelay(self)

    batch_sampler = sampler

    def check_processes(self, num_replicas: int) -> None:
        """Raise unless ``num_replicas`` processes can share each batch.

        Raises:
            ValueError: A batch cannot be shared among ``num_replicas`` processes.
        """
        if self.equal_shares and self.batch_size % num_replicas:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by num_replicas {num_replicas}.")
        if self.batch_size < num_replicas:
            raise ValueError(f"batch_size is {self.batch_size}, fewer than num_replicas = {num_replicas}: a process gets none.")
        if 0 < self._rest() < num_replicas:
            raise ValueError(
                f"drop_last=False leaves a last batch of {self._rest()} samples, fewer than num_replicas = {num_replicas}: "
                "a process would get none. Pass drop_last=True."
            )

    def _rest(self) -> int:
        """Samples of a smaller last batch, 0 without one."""
        return 0 if self.drop_last else self.num_samples % self.batch_size

    def generator(self) -> "np.random.Generator":
        """Random generator of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; distributed training loops call this.

        Setting the epoch of a state just loaded resumes it; any other epoch starts from its first batch.
        """
        self._passes.set_epoch(check_count("epoch", epoch, low=0))

    def refresh(self, z1: Tensor, z2: Tensor, index: Tensor) -> None:
        """Select batches by new features; does nothing for samplers that need no features."""

    def __iter__(self) -> Iterator[list[int]]:
        askers = list(trainers.iterated_by(sys._getframe(1)))
        trainers.check_shards(askers, self.num_replicas, smaller_batch=self._rest() > 0)
        # Validation is no epoch of training, so it must not change the state.
        sampler = copy(self) if trainers.validates(askers) else self
        return sampler._pass(from_start=trainers.skips_batches(askers), same_epoch=trainers.trains(askers))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_passes": copy(self._passes)}

    def _pass(self, from_start: bool, same_epoch: bool) -> Iterator[list[int]]:
        # A pass starts when its first batch is requested: a DataLoader with workers makes two iterators and uses one.
        num_replicas, rank = self._share()
        current = self._passes.begin(from_start, same_epoch)
        try:
            for batch in self.batches(current.seen):
                self._passes.check_epoch(current)
                current.seen += 1
                yield np.array_split(batch, num_replicas)[rank].tolist()
                self._passes.proceed(current)
            current.finished = True
        finally:
            self._passes.end(current)

    def _share(self) -> tuple[int, int]:
        """Number of processes and rank of this process, checked."""
        num_replicas, rank = own_share(*self._given)
        if rank >= num_replicas:
            raise ValueError(f"rank must be below num_replicas = {num_replicas}, got {rank}.")
        self.check_processes(num_replicas)
        return num_replicas, rank

    def state_dict(self, batches_seen: int | None = None, epoch: int | None = None) -> dict[str, Any]:
        """State to continue from here; the same on all processes, and loadable with a different number of processes.

        Args:
            batches_seen: Number of batches of the epoch that training has processed. By default the number of batches yielded
                by the pass that was last asked for a batch. The default is wrong if batches are prefetched: a DataLoader with
                ``num_workers > 0`` requests batches long before it returns them, so count batches in the training loop and pass
                the count.
            epoch: Epoch of ``batches_seen``; by default `epoch`.

        Raises:
            ValueError: ``batches_seen`` exceeds the epoch, or ``epoch`` is given without ``batches_seen``.
            RuntimeError: A pass began and ended during another pass, so the pass to save is ambiguous.
        """
        current = self._passes.described()
        at, seen = (current.epoch + 1, 0) if current.finished else (current.epoch, current.seen)
        if batches_seen is not None:
            at = current.epoch if epoch is None else check_count("epoch", epoch, low=0)
            seen = self._check_seen(batches_seen)
        elif epoch is not None:
            raise ValueError(f"epoch is {epoch} but batches_seen is not given. Pass both, or neither.")
        size = {"num_samples": self.num_samples, "batch_size": self.batch_size}
        return {"epoch": at, "batches_seen": seen, "seed": self.seed, **size, "sampler": type(self).__name__}

    def _check_seen(self, batches_seen: object) -> int:
        seen = check_count("batches_seen", batches_seen, low=0)
        check_at_most("batches_seen", seen, "the number of batches in an epoch", len(self), "Count from 0 in every epoch.")
        return seen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; a state that is refused changes nothing.

        Raises:
            TypeError: The state is no dictionary, or an entry has the wrong type.
            ValueError: The state belongs to another kind of sampler, another dataset size or batch size, or a longer epoch.
        """
        epoch, seen, seed = self._check_state(state)
        self.seed = seed
        self._passes.load(Pass(epoch, seen, resumed=seen > 0, selected=state.get("selected")))

    def _check_state(self, state: dict[str, Any]) -> tuple[int, int, int]:
        """The epoch, the number of batches seen and the seed of a state; raises as `load_state_dict`."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dictionary, what state_dict() returned, got {type(state).__name__}.")
        missing = [name for name in self.state_names if name not in state]
        if missing:
            raise ValueError(f"state lacks {', '.join(missing)}. Take the state of a {type(self).__name__}.")
        made_by = state.get("sampler", type(self).__name__)
        if made_by != type(self).__name__:
            raise ValueError(f"sampler of the state is {made_by}, and this one is a {type(self).__name__}. Take its own state.")
        for name in ("num_samples", "batch_size"):
            if check_count(name, state[name]) != getattr(self, name):
                raise ValueError(
                    f"{name} of the state is {state[name]}, of this sampler {getattr(self, name)}. Make them equal."
                )
        seen, seed = self._check_seen(state["batches_seen"]), check_count("seed", state["seed"], low=0)
        return check_count("epoch", state["epoch"], low=0), seen, seed
