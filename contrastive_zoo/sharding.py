"""The sums over pairs of a batch as joint work of several processes.

All processes hold all rows, and want the whole sums and the whole gradient. So each visits a part of the tiles, forward and
backward, and the parts are put together: sums of rows after the forward pass, gradients of rows after the backward pass. Every
process gets what one process would have got, whatever the rows are made of; nobody needs to know whose they are.

All processes must ask for the same sums in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from contrastive_zoo.operators import operator, uncompiled
from contrastive_zoo.processes import device_of_group, gather_features, own_rows

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Share:
    """What a process has to do with the work of all; by default there is no other.

    Attributes:
        sizes: Samples that each process brought; empty if there is one process.
        rank: Number of this process.
        group: Name of the group of processes.
        x: (B * V, D) rows of the samples that this process brought.
        divided: Whether sums over pairs are shared; if not, each process computes them whole.
    """

    sizes: tuple[int, ...] = ()
    rank: int = 0
    group: str = ""
    x: Tensor | None = None
    divided: bool = False

    @property
    def part(self) -> tuple[int, int]:
        """The part of the tiles that this process visits."""
        return (self.rank, len(self.sizes)) if self.divided else (0, 1)

    def enter(self, value: T) -> T:
        """What all processes hold, at the entry to a shared sum: its gradient is that of all parts of the sum."""
        return _each(value, lambda tensor: joint(tensor, self.group, 1.0)) if self.divided else value

    def leave(self, *sums: Tensor, log: bool) -> tuple[Tensor, ...]:
        """Sums over all pairs, or log-sum-exps if ``log``, from those over the part of each process."""
        if not self.divided:
            return sums
        return merged(torch.cat(sums, -1), log, self.group).split([each.shape[-1] for each in sums], -1)

    def on_own_samples(self, function: Callable[[Tensor, Tensor, T], Tensor], x: Tensor, ids: Tensor, scale: T) -> Tensor:
        """``function(x, ids, scale)``, one row per sample, of the samples of each process by that process, put together."""
        if self.x is None:
            return function(x, ids, scale)
        # Each process sees the gradient of its own values, times the number of processes as that of features; so the mean over
        # processes is the gradient of the scale, which all of them hold.
        weight = 1 / len(self.sizes)
        scale = _each(scale, lambda tensor: joint(tensor, self.group, weight))
        values = function(self.x, own_rows(ids, self.sizes, self.rank), scale)
        return uncompiled(gather_features, [values], self.sizes, _group(self.group))[0]


ALONE = Share()


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function of a tensor that wants a gradient, or of all such in a tuple; other values as they are."""
    if isinstance(value, tuple):
        return tuple(_each(each, function) for each in value)
    wanted = isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    return function(value) if wanted else value


def _group(name: str) -> dist.ProcessGroup:
    return distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]


def _reduced(values: Tensor, group: str, operation: Any) -> Tensor:
    """Sum or maximum over processes, a new tensor."""
    members = _group(group)
    device = device_of_group(members) if values.is_cpu else values.device
    total = values.to(device, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total, operation, group=members)
    return total.to(values.device)


@operator("contrastive_zoo::joint", "(Tensor x, str group, float weight) -> Tensor")
def joint(x: Tensor, group: str, weight: float) -> Tensor:
    """The tensor itself, whose gradient is the sum of those that the processes find, times ``weight``."""
    return x.clone(memory_format=torch.contiguous_format)


@joint.register_fake
def _(x: Tensor, group: str, weight: float) -> Tensor:
    return x.new_empty(x.shape)


@operator("contrastive_zoo::joint_backward", "(Tensor grad, str group, float weight) -> Tensor")
def joint_backward(grad: Tensor, group: str, weight: float) -> Tensor:
    """Weighted sum of the gradients of all processes."""
    return _reduced(grad, group, dist.ReduceOp.SUM).mul_(weight)


@joint_backward.register_fake
def _(grad: Tensor, group: str, weight: float) -> Tensor:
    return grad.new_empty(grad.shape)


def _joint_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, ctx.group, ctx.weight = inputs


def _joint_gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    return compute(grad, ctx.group, ctx.weight), None, None


joint.differentiate(joint_backward, _joint_setup, _joint_gradient)


@operator("contrastive_zoo::merged", "(Tensor part, bool log, str group) -> Tensor")
def merged(part: Tensor, log: bool, group: str) -> Tensor:
    """Sum over processes, or log-sum-exp if ``log``: -inf where all are."""
    if not log:
        return _reduced(part, group, dist.ReduceOp.SUM)
    largest = _reduced(part, group, dist.ReduceOp.MAX)
    shift = torch.where(largest == -torch.inf, 0, largest)
    return _reduced((part - shift).exp_(), group, dist.ReduceOp.SUM).log_().add_(shift)


@merged.register_fake
def _(part: Tensor, log: bool, group: str) -> Tensor:
    return part.new_empty(part.shape)


@operator("contrastive_zoo::merged_backward", "(Tensor grad, Tensor part, Tensor whole, bool log) -> Tensor")
def merged_backward(grad: Tensor, part: Tensor, whole: Tensor, log: bool) -> Tensor:
    """Gradient of the own part, which every process knows by itself."""
    if not log:
        return grad.clone()
    return (part - torch.where(whole == -torch.inf, torch.inf, whole)).exp_().mul_(grad)


@merged_backward.register_fake
def _(grad: Tensor, part: Tensor, whole: Tensor, log: bool) -> Tensor:
    return torch.empty_like(part)


def _merged_setup(ctx: Any, inputs: Any, output: Any) -> None:
    part, ctx.log, _ = inputs
    ctx.save_for_backward(part, output)


def _merged_gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    part, whole = ctx.saved_tensors
    return compute(grad, part, whole, ctx.log), None, None


merged.differentiate(merged_backward, _merged_setup, _merged_gradient)
