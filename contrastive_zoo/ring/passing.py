"""Passes blocks of rows round the processes of a group: each holds its own rows and the block of one other process at a time.

Process p sends to process p + 1 and receives from process p - 1, so in round r it holds the block of process p - r. While a
round computes, the block of the next round is on its way. All processes must go through the same rounds in the same order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_zoo.processes.gather import device_of_group, named_group

# Messages of rows and of gradients are matched separately.
ROWS, GRADIENTS = 0, 1


@dataclass(frozen=True)
class Ring:
    """The processes of a group, and the number of rows of each.

    Attributes:
        group: Name of the group.
        rank: Number of this process.
        rows: Number of rows of each process.
    """

    group: str
    rank: int
    rows: tuple[int, ...]

    def place(self, process: int) -> slice:
        """Place of the rows of a process among the rows of all."""
        start = sum(self.rows[:process])
        return slice(start, start + self.rows[process])

    def visits(self, block: Tensor, rounds: int) -> Iterator[tuple[int, Tensor]]:
        """The owner and the rows of each visiting block, from this process's block, (..., rows, D), on its own way."""
        return self._visits(self.send(block, self.rank) if rounds else None, rounds)

    def _visits(self, arriving: Callable[[], Tensor] | None, rounds: int) -> Iterator[tuple[int, Tensor]]:
        owner = self.rank
        for left in reversed(range(rounds)):
            assert arriving is not None
            owner, block = (owner - 1) % len(self.rows), arriving()
            arriving = self.send(block, owner) if left else None
            yield owner, block

    def send(self, values: Tensor, owner: int, hops: int = 1, kind: int = ROWS) -> Callable[[], Tensor]:
        """Send ``values``, a row for each row of ``owner``, some processes further; the result waits for what arrives here."""
        group, size, values = named_group(self.group), len(self.rows), values.contiguous()
        peers, device = dist.get_process_group_ranks(group), _device_of_messages(values, group)
        sent = values.to(device)
        rows = self.rows[(owner - hops) % size]
        received = torch.empty(*values.shape[:-2], rows, values.shape[-1], dtype=values.dtype, device=device)
        operations = [
            dist.P2POp(operation, message, peers[(self.rank + step) % size], group, kind)
            for operation, message, step in ((dist.isend, sent, hops), (dist.irecv, received, -hops))
            if message.numel()
        ]
        works = dist.batch_isend_irecv(operations) if operations else []

        def arrived() -> Tensor:
            for work in works:
                work.wait()
            return received.to(values.device)

        return arrived


def _device_of_messages(values: Tensor, group: dist.ProcessGroup) -> torch.device:
    """The device that a group sends tensors like ``values`` from; Gloo sends to one other process from the host only."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    backend = backends.get(values.device.type, "")
    return device_of_group(group) if not backend or backend == "gloo" else values.device
