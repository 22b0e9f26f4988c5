"""The operators of the package keep the promises of `torch.library`, whatever calls them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import DEFAULTS, rows, views
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import contrastive_zoo as zoo
from contrastive_zoo import devices, pairwise
from contrastive_zoo.batch.features import stack_views
from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.pairwise.fused import refusals
from contrastive_zoo.processes.shares import Share, joint, swapped
from contrastive_zoo.ring.classes import class_sums

NAMESPACE = "contrastive_zoo"


@pytest.fixture(autouse=True, scope="module")
def _group_of_one() -> Iterator[None]:
    """Operators that talk to other processes work in a group that has none."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Recorder(TorchDispatchMode):
    """Remembers a call of each operator of the package for each kind of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            self.calls.setdefault((str(func), *map(kind, args)), (func, args))
        return func(*args, **(kwargs or {}))


def kind(argument: Any) -> Any:
    """What of an argument decides about the path through an operator."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.dim(), argument.numel() == 0
    return argument if isinstance(argument, bool) else type(argument)


def leaf(argument: Any, differentiable: bool) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(differentiable and argument.requires_grad)


def every_use() -> Iterator[Callable[[], Any]]:
    """Calls of public functions that between them reach all operators, as a compiler would meet them."""
    x, keys = rows(6, 3, dtype=torch.float32), rows(5, 3, seed=1, dtype=torch.float32)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    scales = torch.full((6,), 2.0, requires_grad=True)
    ids, key_ids = torch.arange(6) // 2, torch.arange(5)
    yield lambda: pairwise.logsumexp(x, scale=scale, ids=ids)
    yield lambda: pairwise.logsumexp(x, keys, scale=300.0, ids=ids, key_ids=key_ids)
    yield lambda: pairwise.logsumexp(x, keys, scale=(scale, 2 * scale))
    yield lambda: pairwise.logsumexp(x, scale=scales)
    yield lambda: torch.cat(pairwise.logsumexp_both(x, keys, scale=scale))
    yield lambda: pairwise.logsumexp_with_mean(x, scale=scales, ids=ids)[0]
    yield lambda: pairwise.logsumexp_with_mean(x, keys, scale=scales)[0]
    yield lambda: pairwise.square_sum(x, x.flip(1), ids=ids)
    yield lambda: pairwise.square_sum(x[:2], keys[:2])
    yield lambda: pairwise.kernel_sum(x, kernel="imq", parameter=1.0)
    yield lambda: pairwise.softplus_sum(x, keys, scale=scale, bias=scales, ids=ids, key_ids=key_ids)
    yield lambda: pairwise.softplus_sum(x, scale=scale, bias=0.5, uniform=True)
    yield lambda: pairwise.softplus_sum_within(x, ids=ids, scale=scale, bias=scales)
    yield lambda: pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, ids=ids, unit_rows=True)
    assert dist.group.WORLD is not None
    share = Share((3,), 0, dist.group.WORLD.group_name, x, divided=True)
    yield lambda: torch.cat(share.leave(*(rows.sum(1) for rows in share.enter(x, keys, 2.0)[:2]), log=True))
    yield lambda: share.leave(share.enter(x.detach(), None, (scale, 2 * scale))[2][1] * x.sum(1), log=False)[0]
    yield lambda: torch.mul(*joint(x, None, scale, None, share.group, 2)[::2])
    ring = Pairs.unshared("auto", unit_rows=False, norm_bound=torch.inf)
    ring = replace(ring, share=replace(share, sizes=(6,), ring=True))
    yield lambda: ring.logsumexp(x, scale=(scale, 2 * scale), ids=ids)
    yield lambda: torch.cat(ring.logsumexp_both(x, x.flip(0), scale=scale))
    yield lambda: ring.logsumexp_with_mean(x, scale=scales, ids=ids)[0]
    yield lambda: ring.softplus_sum_within(x, ids=ids, scale=scale, bias=scales)
    yield lambda: swapped(x.detach(), share.group).sum() * x.sum()
    yield lambda: class_sums(x, ids, share.group, [6]).square()


class RecordedUses:
    """Compiles functions with a backend that runs their graphs under a recorder, then their backward passes."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def _backend(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> Any:
            with self.recorder:
                return graph(*inputs)

        return run

    def __call__(self, function: Callable[..., Tensor], *arguments: Any) -> None:
        torch._dynamo.reset()
        value = torch.compile(function, backend=self._backend, fullgraph=True)(*arguments)
        with self.recorder:
            value.sum().backward()


@cache
def recorded() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Operators with arguments, by a readable name."""
    record = RecordedUses()
    for use in every_use():
        record(use)
    batch = views(4, 3, dtype=torch.float32)
    for configuration in DEFAULTS:
        record(batch.call, configuration.make())
        if configuration.card.name == "sogclr":
            record(batch.call, configuration.make(gamma=zoo.CosineSchedule(1.0, 0.2, steps=3)))
        if configuration.card.name == "sampled":
            for sampler in zoo.list_samplers():
                record(batch.call, configuration.make(sampler=sampler))
        if configuration.draws:
            record(batch.call, configuration.make(reduction="none"))
    if devices.TRITON and refusals.INTERPRETED:
        for reduction in ("mean", "none"):
            record(batch.call, zoo.get_loss("emc2", num_samples=40, backend="fused", reduction=reduction))
    record(batch.call, zoo.get_loss("hscl", num_negatives=2))
    record(batch.call, zoo.get_loss("ucl", num_negatives=2))
    torch._dynamo.reset()
    return {f"{call[0].name()} {number}": call for number, call in enumerate(record.recorder.calls.values())}


def registered() -> set[str]:
    return {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{NAMESPACE}::")}


def test_every_operator_is_reached() -> None:
    assert {name.split()[0] for name in recorded()} == registered()


# The checker itself looks at gradients of tensors in the middle of its graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("operator", sorted(registered()))
def test_operators_keep_their_promises(operator: str) -> None:
    """Schema, autograd registration, fake outputs, and agreement of compiled and eager, forward and backward."""
    for name, (func, arguments) in recorded().items():
        if name.startswith(f"{operator} "):
            torch.library.opcheck(func, tuple(leaf(a, not operator.endswith("_backward")) for a in arguments))


class Counter(TorchDispatchMode):
    """Counts the entries that an operator of PyTorch works on."""

    def __init__(self, counted: Any) -> None:
        super().__init__()
        self.counted, self.entries = counted, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.entries += args[0].numel() if func is self.counted else 0
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
def test_a_view_that_needs_no_gradient_is_not_normalised_backwards(needed: tuple[bool, bool]) -> None:
    z1, z2 = (rows(6, 3, seed=view, unit=False).detach().requires_grad_(need) for view, need in enumerate(needed))
    stacked, positive, _ = stack_views(z1, z2, "sphere", torch.float64, name="z", validate=True, second_order=False)
    with Counter(torch.ops.aten.addcmul_.default) as counter:
        (stacked.square().sum() + positive.sum()).backward()
    assert counter.entries == sum(needed) * 6 * 3
    assert [z.grad is not None for z in (z1, z2)] == list(needed)
