"""Calls of a user's encoder by an objective while the loss is computed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_zoo.batch.features import Stacked, stack_views
from contrastive_zoo.batch.options import Options
from contrastive_zoo.checks import check_features, shape
from contrastive_zoo.operators import uncompiled
from contrastive_zoo.processes.gather import Handshake, gather_features, shake_hands

Encode = Callable[[Tensor, Tensor], Tensor]


class UserEncoder(NamedTuple):
    """Calls a user's encoder under the caller's autocast, and makes rows from its features: see `Encoding`.

    Attributes:
        device_type: Device type of the features.
        autocast: Precision of the caller's autocast; None if autocast is off.
        operand: Precision that rows are rounded to.
        options: Options of the loss.
        second_order: Whether a second derivative must be possible.
        group: Processes that each encode a part of the samples; None if this process encodes all samples.
    """

    device_type: str
    autocast: torch.dtype | None
    operand: torch.dtype
    options: Options
    second_order: bool
    group: dist.ProcessGroup | None = None

    def __call__(self, encode: Encode, index: Tensor, view: Tensor, like: Tensor) -> Tensor:
        """Rows (n, D) of what ``encode(index, view)`` returns, in the precision of the batch.

        With several processes, each process encodes a part of the samples and receives the rows of all samples. All processes
        therefore see the same rows, even from a random encoder, and an error on one process is raised on all.

        Args:
            encode: The encoder.
            index: (n,) positions in the dataset.
            view: (n,) views.
            like: (N, D) rows of the batch.

        Raises:
            ValueError: The encoder returned another shape.
            TypeError: The encoder returned no floating-point tensor.
        """
        if self.group is None:
            return self._rows(encode, index, view, like)
        rows: Tensor = uncompiled(self._of_all, self.group, encode, index, view, like)
        return rows

    def _of_all(self, group: dist.ProcessGroup, encode: Encode, index: Tensor, view: Tensor, like: Tensor) -> Tensor:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        own = slice(len(index) * rank // world, len(index) * (rank + 1) // world)

        def make(handshake: Handshake) -> tuple[Tensor, list[int]]:
            rows = self._rows(encode, index[own], view[own], like)
            return rows, handshake.sizes(len(rows), {"the number of samples to encode": len(index)})

        rows, sizes = shake_hands(group, make)
        return gather_features([rows], sizes, group)[0]

    def _rows(self, encode: Encode, index: Tensor, view: Tensor, like: Tensor) -> Tensor:
        if len(index) == 0:
            return like.new_zeros(0, like.shape[1])
        with torch.autocast(self.device_type, dtype=self.autocast, enabled=self.autocast is not None):
            z = encode(index, view)
        check_features("what encode returns", z, (2,))
        if len(z) != len(index):
            raise ValueError(f"encode must return one row for each of {len(index)} positions, got shape {shape(z)}.")
        if z.shape[1] != like.shape[1]:
            raise ValueError(
                f"encode returned {z.shape[1]} features per row but the batch has {like.shape[1]}. "
                "Give the encoder that the features of the batch come from."
            )
        return self.normalized(z, None, "what encode returns").rows.to(like)

    def normalized(self, z1: Tensor, z2: Tensor | None, name: str) -> Stacked:
        """Rows of features, inner products of pairs and rounded rows: see `stack_views`."""
        options = self.options
        return stack_views(
            z1,
            z2,
            str(options.normalize),
            self.operand,
            name=name,
            validate=options.validate,
            second_order=self.second_order,
        )
