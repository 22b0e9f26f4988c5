"""Positions of the passes over a batch sampler, and the share of each process."""

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
    """The number of processes and the rank of this process; by default taken from the initialised process group.

    Raises:
        ValueError: Only one of the two is given, and it contradicts the process group.
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
    """State of a pass over the batches of an epoch.

    Attributes:
        epoch: Number of the epoch.
        seen: Number of batches of the epoch yielded so far.
        told: Whether `set_epoch` set the epoch.
        resumed: Whether the pass continues in the middle of an epoch, where a loaded state was taken.
        selected: The selection, for samplers that choose batches.
        begun: Whether a batch was requested.
        finished: Whether all batches were yielded.
        over: Whether the pass is finished or was interrupted.
        outer: The pass that was running when this pass began.
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
    """The passes over one batch sampler: the pass that the state describes, and the start of the next pass.

    Attributes:
        current: The pass that last yielded a batch; after `set_epoch` or `load`, the next pass.
    """

    def __init__(self) -> None:
        self.current = Pass(0)
        self._last: Pass | None = None
        self._loaded: Pass | None = None
        self._prepare(Pass(0))

    def _prepare(self, start: Pass) -> None:
        """Set the start of the next pass."""
        self._start = start
        self._next: Pass | None = replace(start)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.current.told |= self.current.epoch == epoch
        start = self._loaded if self._loaded is not None and self._loaded.epoch == epoch else Pass(epoch)
        self._prepare(replace(start, told=True, begun=False))
        # Trainers set the epoch before validation too; the state must still describe the running pass.
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
        """The pass that `set_epoch` or `load` prepared, or a pass of the next epoch.

        Args:
            from_start: Whether the loader itself skips the batches that were seen before a state was taken.
            same_epoch: Whether only `set_epoch` changes the epoch.
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
        """Record that a pass is asked for its next batch, possibly after another pass began."""
        if self._next is not None and self._next.epoch == current.epoch:
            self._next = None  # a prefetching loader began the epoch before it was set
        self._last = self.current = current

    def check_epoch(self, current: Pass) -> None:
        """Warn if another epoch was set during this pass, whose own epoch was not set."""
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
        """Record that a pass is over; the state then describes the outer pass of the same epoch again, if there is one."""
        current.over = True
        if current.finished and self._loaded is not None and self._loaded.epoch == current.epoch:
            self._loaded, self._start = None, Pass(current.epoch)
        outer = current.outer
        if self.current is current and outer is not None and not outer.over and outer.epoch == current.epoch:
            self._last = self.current = outer

    def described(self) -> Pass:
        """The pass that training is in.

        Raises:
            RuntimeError: The pass is ambiguous.
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
        # A copy has no running passes.
        following = None if self._next is None else replace(self._next)
        return {**self.__dict__, "_last": None, "_next": following, "current": replace(self.current, outer=None)}
