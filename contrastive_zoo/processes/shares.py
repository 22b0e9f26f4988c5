"""Shares the sums over pairs of a batch among processes.

All processes hold all rows, and need the total sums and the total gradient. Each process visits a part of the tiles, forward
and backward, and the parts are reduced: sums of rows after the forward pass, gradients of rows after the backward pass. Every
process gets the result of a single process, regardless of which process contributed which rows.

All processes must compute the same sums in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_zoo.checks import as_tensor
from contrastive_zoo.operators import operator, uncompiled
from contrastive_zoo.processes.gather import device_of_group, gather_features, named_group, own_rows, own_values

K = TypeVar("K", Tensor, Tensor | None)
S = TypeVar("S")
F = TypeVar("F")


@dataclass(frozen=True, eq=False)
class Share:
    """The part of the work that a process does; the default is a single process that does all work.

    Attributes:
        sizes: Number of samples of each process; empty for a single process.
        rank: Number of this process.
        group: Name of the group of processes.
        x: (B * V, D) rows of this process's samples.
        divided: Whether sums over pairs are shared; if not, each process computes the total sums.
        ring: Whether rows stay with their process, so that this process holds no rows of others but a visiting block.
    """

    sizes: tuple[int, ...] = ()
    rank: int = 0
    group: str = ""
    x: Tensor | None = None
    divided: bool = False
    ring: bool = False

    @property
    def part(self) -> tuple[int, int]:
        """The part of the tiles that this process visits."""
        return (self.rank, len(self.sizes)) if self.divided else (0, 1)

    @property
    def own(self) -> slice:
        """Which samples of the batch this process holds rows of."""
        if not self.ring:
            return slice(None)
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def rows_of_each(self, x: Tensor) -> list[int]:
        """Number of rows of each process, given rows of this process's samples."""
        per_sample = x.shape[-2] // self.sizes[self.rank]
        return [size * per_sample for size in self.sizes]

    def count(self, x: Tensor) -> int:
        """Number of rows that sums over pairs are of: of all processes, in a ring too, where x holds those of this one."""
        return sum(self.rows_of_each(x)) if self.ring else x.shape[-2]

    def enter(self, x: Tensor, keys: K, scale: S, offset: F = None) -> tuple[Tensor, K, S, F]:  # type: ignore[assignment]
        """The inputs of a shared sum; their gradients are summed over processes, in a ring by the sum itself."""
        if self.ring or not self.divided:
            return x, keys, scale, offset
        return _joined(x, keys, scale, offset, self.group, 0)

    def leave(self, *sums: Tensor, log: bool) -> tuple[Tensor, ...]:
        """Total sums over all pairs, or log-sum-exps if ``log``, from the sums over the part of each process."""
        if not self.divided:
            return sums
        return merged(torch.cat(sums, -1), log, self.group).split([each.shape[-1] for each in sums], -1)

    def mean(self, means: Tensor, sums: Tensor, whole: Tensor) -> Tensor:
        """Means over all pairs, from the means over the part of each process, weighted by exp(sums); without gradient."""
        if not self.divided:
            return means
        weight = (sums.detach() - torch.where(whole == -torch.inf, torch.inf, whole.detach())).exp()
        return merged(means * weight, False, self.group)

    def on_rows(self, function: Callable[..., tuple[Tensor, ...]], x: Tensor, keys: Tensor | None = None) -> tuple[Tensor, ...]:
        """``function(x, rows)``, which returns tensors with an entry for each of ``rows``, for all rows, shared by processes.

        The results of any part may depend on all rows of x, and so may the gradients. With ``keys``, also on them: the call is
        ``function(x, rows, keys)``.
        """
        if self.ring:
            raise ValueError("draws and searches need the rows of all processes, unlike gather='ring'. Use gather='auto'.")
        if not self.divided:
            return function(x, slice(0, len(x)), *(() if keys is None else (keys,)))
        x, keys, *_ = self.enter(x, keys, None)
        rows = self.rows(len(x))
        found = function(x, rows, *(() if keys is None else (keys,)))
        return tuple(self.of_all_parts(values, rows.start, len(x)) for values in found)

    def rows(self, count: int) -> slice:
        """The rows of ``count`` whose results this process computes, where each row's result is computed by one process."""
        number, parts = self.part
        return slice(count * number // parts, count * (number + 1) // parts)

    def of_all_parts(self, values: Tensor, start: int, count: int) -> Tensor:
        """All ``count`` rows, from the rows of each process; the rows of this process begin at ``start``."""
        after = values.new_zeros(count - start - len(values), *values.shape[1:])
        padded = torch.cat([values.new_zeros(start, *values.shape[1:]), values, after])
        return self.leave(padded, log=False)[0]

    def on_own_samples(self, function: Callable[[Tensor, Tensor, S], Tensor], x: Tensor, ids: Tensor, scale: S) -> Tensor:
        """``function(x, ids, scale)``, one row per sample: each process computes its own samples, and results are gathered."""
        if self.x is None:
            return function(x, ids, scale)
        x, _, scale, _ = _joined(self.x, None, scale, None, self.group, len(self.sizes))
        return uncompiled(self._of_all, function(x, own_rows(ids, self.sizes, self.rank), scale))

    def of_all(self, values: Tensor) -> Tensor:
        """Values of all samples, (B, ...): in a ring gathered from those of this process's samples, else as they are."""
        return uncompiled(self._of_all, values) if self.ring else values

    def own_values(self, values: Tensor) -> Tensor:
        """The values of this process's samples, from (B,) values of all samples; see `contrastive_zoo.processes.gather`."""
        return uncompiled(own_values, values, self.sizes, named_group(self.group)) if self.sizes else values

    def _of_all(self, values: Tensor) -> Tensor:
        return gather_features([values], self.sizes, named_group(self.group))[0]


ALONE = Share()


def _joined(x: Tensor, keys: Any, scale: Any, offset: Any, group: str, own: int) -> Any:
    """Apply `joint` to the tensors that require a gradient; return the others unchanged."""
    if isinstance(scale, tuple) and any(map(_wants_gradient, scale)):
        scales = torch.stack([as_tensor(each) for each in scale])
        x, keys, scale, offset = _joined(x, keys, scales, offset, group, own)
        return x, keys, scale.unbind(), offset
    given = (x, keys, scale, offset)
    wanted = [_wants_gradient(each) for each in given]
    if not any(wanted):
        return given
    entered = joint(*(each if want else None for each, want in zip(given, wanted, strict=True)), group, own)
    return tuple(new if want else old for new, want, old in zip(entered, wanted, given, strict=True))


def _wants_gradient(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()


def reduced(values: Tensor, group: str, operation: Any) -> Tensor:
    """Sum or maximum over processes, as a new tensor."""
    members = named_group(group)
    device = device_of_group(members) if values.is_cpu else values.device
    total = values.to(device, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total, operation, group=members)
    return total.to(values.device)


# One operator for all: autograd runs a thread per device, so ranks could issue separate collectives in different orders.
@operator(
    "contrastive_zoo::joint",
    "(Tensor? x, Tensor? keys, Tensor? scale, Tensor? offset, str group, int own) -> (Tensor, Tensor, Tensor, Tensor)",
)
def joint(*given: Any) -> tuple[Tensor, ...]:
    """Copies of the inputs whose gradients are summed over processes.

    A nonzero ``own`` is the number of processes: rows and keys then belong to this process, and upstream gradients carry a
    factor ``own``. In this case gradients of rows and keys are not reduced, and gradients of scale and offset are averaged.
    """
    return tuple(map(_copied, given[:4]))


def _copied(tensor: Tensor | None) -> Tensor:
    return torch.empty(0, device="cpu") if tensor is None else tensor.clone(memory_format=torch.contiguous_format)


@joint.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return tuple(map(_copied, given[:4]))


@operator(
    "contrastive_zoo::joint_backward",
    "(Tensor? grad_x, Tensor? grad_keys, Tensor? grad_scale, Tensor? grad_offset, str group, int own)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def joint_backward(*given: Any) -> tuple[Tensor, ...]:
    """Gradients of the inputs, reduced over processes; see `joint`."""
    *grads, group, own = given
    of_rows = (_copied(g) if g is None or own else reduced(g, group, dist.ReduceOp.SUM) for g in grads[:2])
    of_others = (_copied(g) if g is None else reduced(g, group, dist.ReduceOp.SUM).div_(own or 1) for g in grads[2:])
    return *of_rows, *of_others


@joint_backward.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return tuple(map(_copied, given[:4]))


def _joint_setup(ctx: Any, inputs: Any, output: Any) -> None:
    *given, ctx.group, ctx.own = inputs
    ctx.mark_non_differentiable(*(new for new, old in zip(output, given, strict=True) if old is None))


def _joint_gradient(ctx: Any, compute: Any, *grads: Tensor) -> Any:
    wanted = ctx.needs_input_grad[:4]
    gradients = compute(*(g if want else None for g, want in zip(grads, wanted, strict=True)), ctx.group, ctx.own)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), None, None


joint.differentiate(joint_backward, _joint_setup, _joint_gradient)


@operator("contrastive_zoo::merged", "(Tensor part, bool log, str group) -> Tensor")
def merged(part: Tensor, log: bool, group: str) -> Tensor:
    """Sum over processes, or log-sum-exp over processes if ``log``; -inf if all parts are -inf."""
    if not log:
        return reduced(part, group, dist.ReduceOp.SUM)
    largest = reduced(part, group, dist.ReduceOp.MAX)
    shift = torch.where(largest == -torch.inf, 0, largest)
    return reduced((part - shift).exp_(), group, dist.ReduceOp.SUM).log_().add_(shift)


@merged.register_fake
def _(part: Tensor, log: bool, group: str) -> Tensor:
    return part.new_empty(part.shape)


@operator("contrastive_zoo::merged_backward", "(Tensor grad, Tensor part, Tensor whole, bool log) -> Tensor")
def merged_backward(grad: Tensor, part: Tensor, whole: Tensor, log: bool) -> Tensor:
    """Gradient of this process's part, which needs no communication."""
    if not log:
        return grad.clone()
    return (part - torch.where(whole == -torch.inf, torch.inf, whole)).exp_().mul_(grad)


@merged_backward.register_fake
def _(grad: Tensor, part: Tensor, whole: Tensor, log: bool) -> Tensor:
    return torch.empty_like(part)


@operator("contrastive_zoo::swapped", "(Tensor rows, str group) -> Tensor")
def swapped(rows: Tensor, group: str) -> Tensor:
    """A part of the rows (N, W) of each process, (P, A, W): process p of P gets the rows from N p / P to N (p + 1) / P."""
    members = named_group(group)
    rank, world = dist.get_rank(members), dist.get_world_size(members)
    bounds = [len(rows) * number // world for number in range(world + 1)]
    sizes = [stop - start for start, stop in pairwise(bounds)]
    device = device_of_group(members) if rows.is_cpu else rows.device
    sent = rows.to(device).contiguous()
    found = sent.new_empty(world * sizes[rank], rows.shape[1])
    dist.all_to_all_single(found, sent, [sizes[rank]] * world, sizes, group=members)
    return found.view(world, sizes[rank], rows.shape[1]).to(rows.device)


@swapped.register_fake
def _(rows: Tensor, group: str) -> Tensor:
    members = named_group(group)
    rank, world = dist.get_rank(members), dist.get_world_size(members)
    size = rows.shape[0] * (rank + 1) // world - rows.shape[0] * rank // world
    return rows.new_empty(world, size, rows.shape[1])


def _merged_setup(ctx: Any, inputs: Any, output: Any) -> None:
    part, ctx.log, _ = inputs
    ctx.save_for_backward(part, output)


def _merged_gradient(ctx: Any, compute: Any, grad: Tensor) -> Any:
    part, whole = ctx.saved_tensors
    return compute(grad, part, whole, ctx.log), None, None


merged.differentiate(merged_backward, _merged_setup, _merged_gradient)
