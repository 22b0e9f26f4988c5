"""Gathers the batches of all processes into one batch, or raises an error on all processes."""

import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

T = TypeVar("T")


def group_size(gather: str | bool, group: dist.ProcessGroup | None) -> int:
    """Number of processes whose batches are gathered; 1 without an initialised group."""
    if gather is False or not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(group)


def check_group(group: object) -> None:
    """Raise unless ``group`` is None or a process group that this process belongs to.

    Raises:
        TypeError: ``group`` is something else.
        ValueError: The group is of other processes.
    """
    if group is None:
        return
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group is a group of other processes. Make the loss on processes of the group only.")
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"process_group must be None or what torch.distributed.new_group returns, got {group!r}.")


def device_of_group(group: dist.ProcessGroup) -> torch.device:
    """The device for messages of a group: the CPU if the group supports it."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return torch.device("cpu" if "cpu" in backends else next(iter(backends)))


def named_group(name: str) -> dist.ProcessGroup:
    """The group of a name, which operators take in its place."""
    return distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]


_HOST_GROUPS: "weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup]" = weakref.WeakKeyDictionary()


def host_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group of the same processes that sends from the CPU, which avoids a synchronisation.

    Returns the group itself if it supports the CPU, or if Gloo is not available. Else the first call creates a new group; all
    processes must make this first call.
    """
    if device_of_group(group).type == "cpu" or not dist.is_gloo_available():
        return group
    if group not in _HOST_GROUPS:
        ranks = dist.get_process_group_ranks(group)
        made = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        assert isinstance(made, dist.ProcessGroup)  # this process is one of them
        _HOST_GROUPS[group] = made
    return _HOST_GROUPS[group]


def exchange(numbers: Sequence[int], group: dist.ProcessGroup | None) -> list[list[int]]:
    """Gather integers from all processes, without a synchronisation; a list by process for each integer."""
    whole = dist.group.WORLD if group is None else group
    assert whole is not None
    host = host_group(whole)
    own = torch.tensor(numbers, dtype=torch.int64, device=device_of_group(host))
    rows = [torch.zeros_like(own) for _ in range(dist.get_world_size(host))]
    dist.all_gather(rows, own, group=host)
    return torch.stack(rows, 1).tolist()


FAILED = -1


class Handshake:
    """The exchange between processes before features are gathered: either all batches fit, or all processes raise.

    A handshake never synchronises with an accelerator.

    Args:
        group: The processes.

    Attributes:
        group: The processes.
        done: Whether the exchange has taken place.
        same: Ranks that share a checksum with another rank.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.done = False
        self.same: list[int] = []

    def sizes(self, size: int, call: dict[str, object], checksum: int = -1) -> list[int]:
        """Number of samples of each process; the last batch of an epoch may differ.

        Args:
            size: Size of this process's batch.
            call: Values that must be equal on all processes.
            checksum: Checksum of this process's samples; -1 if unknown.

        Raises:
            ValueError: On all processes, if one process raised an error or the values differ.
        """
        sizes, prints, checksums = self._exchange(size, zlib.crc32(repr(call).encode()), checksum)
        if FAILED in sizes or len(set(prints)) > 1:
            self._refuse(call)
        ranks = dist.get_process_group_ranks(self.group)
        self.same = [r for r, known in zip(ranks, checksums, strict=True) if known >= 0 and checksums.count(known) > 1]
        return sizes

    def miss(self, error: Exception) -> None:
        """Report an error of this process to the other processes, unless the handshake is over."""
        if not self.done:
            self._exchange(FAILED, 0, -1)
            self._said(f"{type(error).__name__}: {error}")

    def _exchange(self, *numbers: int) -> list[list[int]]:
        """Gather integers from all processes."""
        self.done = True
        return exchange(numbers, self.group)

    def _said(self, words: object) -> dict[int, Any]:
        """Gather an object from each process, by rank."""
        ranks = dist.get_process_group_ranks(self.group)
        said: list[Any] = [None] * len(ranks)
        dist.all_gather_object(said, words, group=host_group(self.group))
        return dict(zip(ranks, said, strict=True))

    def _refuse(self, call: dict[str, object]) -> NoReturn:
        said = self._said(call)
        failures = [f"rank {rank} raised {words}" for rank, words in said.items() if isinstance(words, str)]
        if failures:
            raise ValueError(f"{'; '.join(failures)} So no other process computes a loss or changes a table either.")
        for name in {name: None for words in said.values() for name in words}:
            values = {rank: words.get(name, "missing") for rank, words in said.items()}
            if len(set(map(repr, values.values()))) > 1:
                listed = ", ".join(f"{value} on rank {rank}" for rank, value in values.items())
                raise ValueError(f"all processes of a group must call the loss alike, but {name} is {listed}.")
        raise AssertionError("the processes agree after all")


def shake_hands(group: dist.ProcessGroup | None, make: Callable[[Handshake], T]) -> T:
    """Call ``make(handshake)`` on all processes of the group; an error before the handshake is raised on all processes."""
    whole = dist.group.WORLD if group is None else group
    assert whole is not None
    handshake = Handshake(whole)
    try:
        return make(handshake)
    except Exception as error:
        handshake.miss(error)
        raise


def gather(values: Sequence[Tensor], sizes: Sequence[int], group: dist.ProcessGroup) -> list[Tensor]:
    """Gather tensors of one dtype and device, each with a fixed number of rows per sample, in the order of ranks.

    All tensors are sent in one message, padded if sizes differ.
    """
    own = sizes[dist.get_rank(group)]
    rows_per_sample = [len(value) // own if own else 1 for value in values]
    per_sample = [rows * value.shape[1:].numel() for rows, value in zip(rows_per_sample, values, strict=True)]
    message = values[0].new_zeros(max(sizes) * sum(per_sample))
    torch.cat([value.flatten() for value in values], out=message[: own * sum(per_sample)])
    messages = [torch.empty_like(message) for _ in sizes]
    dist.all_gather(messages, message, group=group)
    parts = [
        message[: size * sum(per_sample)].split([size * entries for entries in per_sample])
        for message, size in zip(messages, sizes, strict=True)
    ]
    together = [torch.cat(of_all) for of_all in zip(*parts, strict=True)]
    return [
        entries.view(sum(sizes) * rows, *value.shape[1:])
        for entries, rows, value in zip(together, rows_per_sample, values, strict=True)
    ]


def gather_integers(
    values: list[Tensor | None], sizes: Sequence[int], device: torch.device, group: dist.ProcessGroup
) -> list[Tensor | None]:
    """Gather integers, (B,) per tensor, from all processes; None stays None.

    Integers on the host are sent from there, which waits for no accelerator; all others are sent from ``device``. On all
    processes a tensor must be on the same side.
    """
    host, found = host_group(group), list(values)
    hosted = device_of_group(host).type == "cpu"
    for on_host, members in ((True, host), (False, group)):
        chosen = {n: value for n, value in enumerate(values) if value is not None and (hosted and value.is_cpu) == on_host}
        if chosen:
            sent = gather([value.to("cpu" if on_host else device, torch.int64) for value in chosen.values()], sizes, members)
            for (number, value), integers in zip(chosen.items(), sent, strict=True):
                found[number] = integers.to(value.device)
    return found


def joined_integers(own: Tensor, purpose: str, handshake: Handshake) -> tuple[Tensor, slice]:
    """The integers (B,) of all processes, one after another, and which of them are of this process; waits for them.

    Raises:
        ValueError: On all processes, if one of them raised an error or has another purpose.
    """
    group = handshake.group
    sizes = handshake.sizes(len(own), {"what is done": purpose})
    (together,) = gather_integers([own.cpu()], sizes, device_of_group(group), group)
    assert together is not None
    start = sum(sizes[: dist.get_rank(group)])
    return together, slice(start, start + len(own))


def own_rows(gathered: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """The rows of one process in a gathered tensor with a fixed number of rows per sample."""
    per_sample = gathered.shape[0] // sum(sizes)
    return gathered.narrow(0, sum(sizes[:rank]) * per_sample, sizes[rank] * per_sample)


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Sequence[int], group: dist.ProcessGroup, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.rank = sizes, dist.get_rank(group)
        return tuple(gather(values, sizes, group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *(own_rows(grad, ctx.sizes, ctx.rank) * len(ctx.sizes) for grad in grads)


def gather_features(values: Sequence[Tensor], sizes: Sequence[int], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """`gather` with a gradient: the gradient of this process's part, times the number of processes.

    Every process computes the loss of the whole batch, so the gradient needs no communication. With this factor, the average of
    DistributedDataParallel equals the gradient on a single process.
    """
    gathered: tuple[Tensor, ...] = _GatherFeatures.apply(sizes, group, *values)  # type: ignore[no-untyped-call]
    return gathered


class _OwnValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Sequence[int], group: dist.ProcessGroup, values: Tensor) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        return own_rows(values, sizes, dist.get_rank(group)).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, gather(grads, ctx.sizes, ctx.group)[0]


def own_values(values: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """This process's part of values that all processes have, one per sample; upstream gradients are gathered.

    The backward pass is that of a single process with the values, and the upstream gradients, of all processes.
    """
    own: Tensor = _OwnValues.apply(sizes, group, values)  # type: ignore[no-untyped-call]
    return own


def decided_by_first(decide: Callable[[list[Any]], T], given: Any) -> T:
    """Call ``decide`` on the first process with the ``given`` of all processes; its result or error reaches all processes."""
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
        except Exception as error:  # whatever the error, the other processes must not wait forever
            outcome[0] = error
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    result: T = outcome[0]
    return result
