"""Where a pass over a batch sampler is, and which share of its batches a process takes."""

from dataclasses import dataclass

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
