"""Sums of the rows of each class over all processes, where rows stay with their process."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.processes.gather import named_group
from contrastive_zoo.ring.passing import Ring


def _sums(rows: Tensor, classes: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    ring = Ring(group, dist.get_rank(named_group(group)), tuple(sizes))
    own = classes[ring.place(ring.rank)]
    # The place of each class among those of this process's rows; rows of other classes go to an extra place.
    numbers = torch.full_like(classes, len(own)).index_copy_(0, own, torch.arange(len(own), device=own.device))
    sums = rows.new_zeros(len(own) + 1, rows.shape[1]).index_add_(0, numbers[own], rows)
    for owner, block in ring.visits(rows, len(sizes) - 1):
        sums.index_add_(0, numbers[classes[ring.place(owner)]], block)
    return sums[numbers[own]]


@operator("contrastive_zoo::class_sums", "(Tensor rows, Tensor classes, str group, int[] sizes) -> Tensor")
def class_sums(rows: Tensor, classes: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    """For each row of this process, (b, D), the sum of the rows of its class over all processes.

    Args:
        rows: (b, D) rows of this process.
        classes: (B,) class of each row of all processes, below B.
        group: Name of the group of processes.
        sizes: Number of rows of each process.
    """
    return _sums(rows, classes, group, sizes)


@class_sums.register_fake
def _(rows: Tensor, classes: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    return torch.empty_like(rows)


@operator("contrastive_zoo::class_sums_backward", "(Tensor grad, Tensor classes, str group, int[] sizes) -> Tensor")
def class_sums_backward(grad: Tensor, classes: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    """The gradient of the rows: sums of the upstream gradients by class, since pairs of a class are symmetric."""
    return _sums(grad.contiguous(), classes, group, sizes)


@class_sums_backward.register_fake
def _(grad: Tensor, classes: Tensor, group: str, sizes: Sequence[int]) -> Tensor:
    return torch.empty_like(grad)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    rows, classes, ctx.group, ctx.sizes = inputs
    ctx.save_for_backward(rows, classes)


def _gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    _, classes = ctx.saved_tensors
    return compute(grad, classes, ctx.group, list(ctx.sizes)), None, None, None


class_sums.differentiate(class_sums_backward, _setup, _gradient)
