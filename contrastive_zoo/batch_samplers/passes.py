"""Where the passes over a batch sampler are, and which share of its batches a process takes."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor


def grouped() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def several_processes() -> bool:
    """Whether there is a process group of more than one process."""
    return grouped() and dist.get_world_size() > 1


def own_share(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """The number of processes and this one's, of the initialised process group where they are not given.

    Raises:
        ValueError: Only one of the two is given, and the process group does not go with it.
    """
    world, own = (dist.get_world_size(), dist.get_rank()) if grouped() else (1, 0)
    if num_replicas is None and rank not in (None, own):
        found = f"the process group says {own}" if grouped() else "there is no process group"
        raise ValueError(f"rank is {rank} but {found}. Leave rank out, or pass num_replicas too.")
    if num_replicas not in (None, 1, world) and rank is None:
        found = f"the process group has {world} processes" if grouped() else "there is no process group"
        raise ValueError(f"num_replicas is {num_replicas} but {found}. Pass rank too.")
    if num_replicas is None:
        return world, own
    return num_replicas, rank if rank is not None else own if num_replicas == world else 0


@dataclass
class Pass:
    """Where a pass over the batches of an epoch is.

    Attributes:
        epoch: Number of the epoch.
        seen: Batches of the epoch that were handed out.
        told: Whether `set_epoch` said the epoch.
        resumed: Whether it goes on in the middle of an epoch, where a loaded state was taken.
        selected: The selection of samplers that choose batches.
        begun: Whether a batch was asked for.
        finished: Whether there was none left.
        over: Whether it is finished or was broken off.
        outer: The pass that was going on when this one began.
    """

    epoch: int
    seen: int = 0
    told: bool = False
    resumed: bool = False
    selected: Tensor | None = None
    begun: bool = False
    finished: bool = False
    over: bool = False
    outer: "Pass | None" = None


class Passes:
    """The passes over one batch sampler: which one the state describes, and where the next one starts.

    Attributes:
        current: The pass that last handed out a batch, or the next one after `set_epoch` or `load`.
    """

    def __init__(self) -> None:
        self.current = Pass(0)
        self._last: Pass | None = None
        self._loaded: Pass | None = None
        self._prepare(Pass(0))

    def _prepare(self, start: Pass) -> None:
        """Let the next pass start there."""
        self._start = start
        self._next: Pass | None = replace(start)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch."""
        self.current.told |= self.current.epoch == epoch
        start = self._loaded if self._loaded is not None and self._loaded.epoch == epoch else Pass(epoch)
        self._prepare(replace(start, told=True, begun=False))
        # Trainers set the epoch before validation too; the state is still that of the pass that is going on.
        if self._last is None or self._last.over or self._last.epoch != epoch:
            self.current = self._start

    def load(self, state: Pass) -> None:
        """Let the next pass continue where a state was taken."""
        self._loaded = state
        self.current = replace(state)
        self._prepare(replace(state))

    def coming_epoch(self) -> int:
        """Epoch of the next pass that begins with its first batch."""
        coming = self._next
        return self.current.epoch + 1 if coming is None else coming.epoch + int(coming.resumed)

    def begin(self, from_start: bool, same_epoch: bool) -> Pass:
        """The pass that `set_epoch` or `load` prepared, or one of the next epoch.

        Args:
            from_start: Whether somebody else skips the batches that were seen before a state was taken.
            same_epoch: Whether the epoch changes by `set_epoch` only.
        """
        following = replace(self._start) if same_epoch else Pass(self.current.epoch + 1)
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
        self._last = self.current = current
        return current

    def proceed(self, current: Pass) -> None:
        """A pass is asked for its next batch, perhaps after another one began."""
        if self._next is not None and self._next.epoch == current.epoch:
            self._next = None  # a loader that fetches ahead had begun the epoch before it was set
        self._last = self.current = current

    def check_epoch(self, current: Pass) -> None:
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

    def end(self, current: Pass) -> None:
        """A pass is finished or broken off; one of the same epoch that it interrupted is described by the state again."""
        current.over = True
        if current.finished and self._loaded is not None and self._loaded.epoch == current.epoch:
            self._loaded, self._start = None, Pass(current.epoch)
        outer = current.outer
        if self.current is current and outer is not None and not outer.over and outer.epoch == current.epoch:
            self._last = self.current = outer

    def described(self) -> Pass:
        """The pass that training is in.

        Raises:
            RuntimeError: Two passes may be meant.
        """
        current = self.current
        if current.over and current.outer is not None and not current.outer.over:
            raise RuntimeError(
                f"epoch {current.outer.epoch} of this sampler is unfinished, and a pass of epoch {current.epoch} that began "
                "later has ended: which of them is training is unknown. Give validation a sampler of its own, or delete the "
                "iterator that is no longer needed."
            )
        return current

    def __getstate__(self) -> dict[str, Any]:
        # Nobody iterates the passes of the original over a copy.
        following = None if self._next is None else replace(self._next)
        return {**self.__dict__, "_last": None, "_next": following, "current": replace(self.current, outer=None)}
