"""What all batch samplers share: passes, seeds, processes, state."""

import inspect
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from contrastive_zoo.batch_samplers import trainers
from contrastive_zoo.batch_samplers.passes import Pass, grouped, own_share
from contrastive_zoo.checks import check_at_most, check_count

Positions = np.ndarray[Any, np.dtype[np.int64]]
S = TypeVar("S", bound="BatchSampler")


class BatchSampler(Sampler[list[int]], ABC):
    """Lists of positions in the dataset, one list a batch; subclasses say which, for all processes together.

    Every process makes the same global batches from the same seed and takes its slice of each. Every pass is a new epoch, also
    after one that was broken off; `set_epoch` says which. The first pass after `load_state_dict` continues where the state was
    taken. A pass keeps its own epoch and position: a second one over the same sampler, for validation say, does not change it.

    Args:
        num_samples: Size of the dataset.
        batch_size: Samples in a global batch.
        seed: Seed of all draws.
        num_replicas: Number of processes; by default that of the process group when a pass begins, or 1 without one.
        rank: This process; by default its rank in the process group when a pass begins, or 0 without one.

    Attributes:
        needs_features: Whether `refresh` is wanted before a pass.
        drop_last: Whether what does not fill a batch is left out.
        state_names: Keys of the state.

    Raises:
        TypeError: A value is no whole number.
        ValueError: The batch is larger than the dataset, or not divisible by the number of processes, or rank is out of range.
    """

    needs_features = False
    drop_last = True
    state_names: tuple[str, ...] = ("epoch", "batches_seen", "seed", "num_samples", "batch_size")

    def __new__(cls: type[S], *args: Any, **params: Any) -> S:
        """Refuse what trainers do that rebuild a batch sampler."""
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
        self._last: Pass | None = None
        self._loaded: Pass | None = None
        self._prepare(Pass(0))
        self._current = Pass(0)

    @abstractmethod
    def batches(self, start: int) -> Iterator[Positions]:
        """The global batches of this epoch from number ``start`` on, (batch_size,) each."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @property
    def epoch(self) -> int:
        """Epoch of the pass that last handed out a batch, or of the next one after `set_epoch` or `load_state_dict`."""
        return self._current.epoch

    @property
    def num_replicas(self) -> int:
        """Number of processes: as given, or that of the process group."""
        given = self._given[0]
        return own_share(None, None)[0] if given is None else given

    @property
    def rank(self) -> int:
        """This process: as given, or its rank in the process group."""
        return own_share(*self._given)[1]

    @property
    def sampler(self) -> trainers.EpochRelay:
        """Where trainers set the epoch."""
        return trainers.EpochRelay(self)

    batch_sampler = sampler

    def check_processes(self, num_replicas: int) -> None:
        """Raise unless so many processes can share each batch.

        Raises:
            ValueError: They cannot.
        """
        if self.batch_size % num_replicas:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by num_replicas {num_replicas}.")

    def generator(self) -> "np.random.Generator":
        """Draws of this epoch."""
        return np.random.default_rng([self.seed, self.epoch])

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch; distributed training loops call this.

        The epoch of a loaded state continues where the state was taken, every other one starts with its first batch.
        """
        epoch = check_count("epoch", epoch, low=0)
        self._current.told |= self._current.epoch == epoch
        start = self._loaded if self._loaded is not None and self._loaded.epoch == epoch else Pass(epoch)
        self._prepare(replace(start, told=True, begun=False))
        # Trainers set the epoch before validation too; the state is still that of the pass that is going on.
        if self._last is None or self._last.over or self._last.epoch != epoch:
            self._current = self._start

    def _prepare(self, start: Pass) -> None:
        """Let the next pass start there."""
        self._start = start
        self._next: Pass | None = replace(start)

    def _coming_epoch(self) -> int:
        """Epoch of the next pass that begins with its first batch."""
        coming = self._next
        return self._current.epoch + 1 if coming is None else coming.epoch + int(coming.resumed)

    def refresh(self, z1: Tensor, z2: Tensor, index: Tensor) -> None:
        """Take note of new features; does nothing for samplers that need none."""

    def __iter__(self) -> Iterator[list[int]]:
        askers = list(trainers.iterated_by(sys._getframe(1)))
        smaller = not self.drop_last and self.num_samples % self.batch_size > 0
        trainers.check_shards(askers, self.num_replicas, smaller)
        # Validation is no epoch of training, so it leaves no trace here.
        sampler = copy(self) if trainers.validates(askers) else self
        return sampler._pass(from_start=trainers.skips_batches(askers), same_epoch=trainers.trains(askers))

    def __getstate__(self) -> dict[str, Any]:
        # Nobody iterates the passes of the original over a copy.
        following = None if self._next is None else replace(self._next)
        return {**self.__dict__, "_last": None, "_next": following, "_current": replace(self._current, outer=None)}

    def _pass(self, from_start: bool, same_epoch: bool) -> Iterator[list[int]]:
        # Nothing happens before the first batch is asked for: a DataLoader with workers makes two iterators and uses one.
        num_replicas, rank = self._share()
        current = self._begin(from_start, same_epoch)
        try:
            for batch in self.batches(current.seen):
                self._check_epoch(current)
                current.seen += 1
                yield np.array_split(batch, num_replicas)[rank].tolist()
                self._continue(current)
            current.finished = True
        finally:
            self._end(current)

    def _share(self) -> tuple[int, int]:
        """Number of processes and this one's, checked."""
        num_replicas, rank = own_share(*self._given)
        if rank >= num_replicas:
            raise ValueError(f"rank must be below num_replicas = {num_replicas}, got {rank}.")
        self.check_processes(num_replicas)
        return num_replicas, rank

    def _begin(self, from_start: bool, same_epoch: bool) -> Pass:
        """The pass that `set_epoch` or `load_state_dict` prepared, or one of the next epoch.

        Args:
            from_start: Whether somebody else skips the batches that were seen before a state was taken.
            same_epoch: Whether the epoch changes by `set_epoch` only.
        """
        following = replace(self._start) if same_epoch else Pass(self._current.epoch + 1)
        current, loaded, last = self._next or following, self._loaded, self._last
        if loaded is not None and loaded.epoch != current.epoch:
            if current.epoch < loaded.epoch and not loaded.begun:
                warnings.warn(
                    f"a pass of epoch {current.epoch} begins, so the loaded state of epoch {loaded.epoch} is not continued. "
                    f"Accelerate and Fabric count from 0 in every run: call loader.set_epoch({loaded.epoch}) on a loader that "
                    "Accelerate prepared, and leave the loader out of fabric.setup_dataloaders.",
                    stacklevel=3,
                )
            self._loaded = None
        elif loaded is not None:
            loaded.begun = True
        current.begun, current.seen = True, 0 if from_start else current.seen
        current.outer = last if last is not None and not last.over else None
        self._next = None
        self._last = self._current = current
        return current

    def _continue(self, current: Pass) -> None:
        """A pass is asked for its next batch, perhaps after another one began."""
        if self._next is not None and self._next.epoch == current.epoch:
            self._next = None  # a loader that fetches ahead had begun the epoch before it was set
        self._last = self._current = current

    def _check_epoch(self, current: Pass) -> None:
        """Warn if the pass goes on although another epoch was set meanwhile, before any was."""
        if self._next is None or current.told:
            return
        warnings.warn(
            f"set_epoch({self._next.epoch}) came after {current.seen} batches of epoch {current.epoch} were handed out "
            f"(loaders with workers fetch ahead), so this pass stays in epoch {current.epoch}. When a run is resumed, call "
            "sampler.load_state_dict before the loader is iterated.",
            stacklevel=3,
        )
        current.told = True

    def _end(self, current: Pass) -> None:
        """A pass is finished or broken off; one of the same epoch that it interrupted is described by the state again."""
        current.over = True
        if current.finished and self._loaded is not None and self._loaded.epoch == current.epoch:
            self._loaded, self._start = None, Pass(current.epoch)
        outer = current.outer
        if self._current is current and outer is not None and not outer.over and outer.epoch == current.epoch:
            self._last = self._current = outer

    def _described(self) -> Pass:
        """The pass that training is in.

        Raises:
            RuntimeError: Two passes may be meant.
        """
        current = self._current
        if current.over and current.outer is not None and not current.outer.over:
            raise RuntimeError(
                f"epoch {current.outer.epoch} of this sampler is unfinished, and a pass of epoch {current.epoch} that began "
                "later has ended: which of them is training is unknown. Give validation a sampler of its own, or delete the "
                "iterator that is no longer needed."
            )
        return current

    def state_dict(self, batches_seen: int | None = None, epoch: int | None = None) -> dict[str, Any]:
        """What a new sampler needs to continue from here; the same on all processes, and loadable on another number of them.

        Args:
            batches_seen: Batches of the epoch that training is done with. By default those that the pass handed out which was
                last asked for one. That is right unless somebody fetches ahead: a DataLoader with ``num_workers > 0`` asks for
                batches long before it returns them, so count them in the training loop and pass the count.
            epoch: Which epoch that is; by default `epoch`.

        Raises:
            ValueError: An epoch has fewer batches, or ``epoch`` is given without ``batches_seen``.
            RuntimeError: One pass began while another was going on, and ended, so that two may be meant.
        """
        current = self._described()
        at, seen = (current.epoch + 1, 0) if current.finished else (current.epoch, current.seen)
        if batches_seen is not None:
            at = current.epoch if epoch is None else check_count("epoch", epoch, low=0)
            seen = self._check_seen(batches_seen)
        elif epoch is not None:
            raise ValueError(f"epoch is {epoch} but batches_seen is not given. Pass both, or neither.")
        size = {"num_samples": self.num_samples, "batch_size": self.batch_size}
        return {"epoch": at, "batches_seen": seen, "seed": self.seed, **size}

    def _check_seen(self, batches_seen: object) -> int:
        seen = check_count("batches_seen", batches_seen, low=0)
        check_at_most("batches_seen", seen, "the number of batches in an epoch", len(self), "Count from 0 in every epoch.")
        return seen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a sampler with that state was.

        Raises:
            ValueError: The state is of another kind of sampler, of a dataset or a batch of another size, or of a longer epoch.
        """
        missing = [name for name in self.state_names if name not in state]
        if missing:
            raise ValueError(f"state lacks {', '.join(missing)}. Take the state of a {type(self).__name__}.")
        for name in ("num_samples", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name} of the state is {state[name]}, of this sampler {getattr(self, name)}. Make them equal."
                )
        epoch, seen = check_count("epoch", state["epoch"], low=0), self._check_seen(state["batches_seen"])
        self.seed = check_count("seed", state["seed"], low=0)
        self._loaded = Pass(epoch, seen, resumed=seen > 0, selected=state.get("selected"))
        self._current = replace(self._loaded)
        self._prepare(replace(self._loaded))
