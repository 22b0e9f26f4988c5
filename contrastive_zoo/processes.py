"""One batch from the batches of all processes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def group_size(gather: str | bool, group: dist.ProcessGroup | None) -> int:
    """Number of processes whose batches are put together; 1 without an initialised group."""
    if gather is False or not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(group)


def gather_sizes(size: int, device: torch.device, group: dist.ProcessGroup | None) -> list[int]:
    """Number of samples on each process; the last batch of an epoch may differ."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([size], dtype=torch.int64, device=device), group=group)
    return [int(n) for n in sizes]


def gather(values: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Values (size, ...) of all processes in the order of their ranks; padded on the way where sizes differ."""
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class GatherFeatures(torch.autograd.Function):
    """Gathers features; the gradient of the own part carries the number of processes.

    Every process computes the loss of the whole batch, so the gradient needs no communication; the factor makes the average
    that DistributedDataParallel takes equal to the gradient in one process.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
        """``sizes`` are the rows of each process."""
        rank = dist.get_rank(group)
        ctx.start, ctx.size, ctx.world = sum(sizes[:rank]), sizes[rank], len(sizes)
        return gather(values, sizes, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """The part of the own rows, times the number of processes."""
        return grads[0].narrow(0, ctx.start, ctx.size) * ctx.world, None, None


def decided_by_first(decide: Callable[[list[Any]], T], given: Any) -> T:
    """What the first process of the initialised group makes of what all were given; an error of it is raised on all."""
    if not dist.is_available() or not dist.is_initialized():
        return decide([given])
    sent = tuple(value.cpu() if isinstance(value, Tensor) else value for value in given)
    first = dist.get_rank() == 0
    parts: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(sent, parts if first else None)
    outcome: list[Any] = [None]
    if first:
        try:
            outcome[0] = decide(parts)
        except Exception as error:  # whatever it is, the others must not wait for a decision that never comes
            outcome[0] = error
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    result: T = outcome[0]
    return result
