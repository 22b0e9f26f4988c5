"""What each process of a group does for the tests of ``gather="ring"``: it goes through everything and writes it to a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import CONFIGURATIONS, NUM_SAMPLES, Configuration
from group import (
    FOUND,
    ONE_VIEW,
    SIZES,
    WITH_NEGATIVES,
    global_batch,
    global_weights,
    local_batch,
    local_negatives,
    part_of,
    run,
)
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import contrastive_zoo as zoo
from contrastive_zoo.pairwise.tiled import tiles

# Of four processes, the two of the middle round are not neighbours.
SIZES_OF_RING = {**SIZES, 4: [(3, 3, 3, 3), (1, 4, 2, 5)]}
IN_RING = [c for c in CONFIGURATIONS if c.card.ring and c.params.get("num_negatives") is None]
KEYS_IN_RING = [c for c in WITH_NEGATIVES if c.card.ring]
VIEWS_IN_RING = [c for c in IN_RING if "views" in c.card.uses and not c.params]
# Every kind of sum: rows that are their own keys, with one and two scales, a scale for each row, sets; keys; pairs of a class.
KINDS = ["ntxent", "hcl", "isogclr", "dhel", "infonce", "siglip", "hscl", "supcon"]
PRECISIONS = [torch.float32, torch.bfloat16]
COMPILED_IN_RING = ["isogclr"]
# Samples of a process in measurements, and features, whose number is that of no other axis.
SAMPLES, FEATURES = 32, 13
MEASURED = {"ntxent": {}, "infonce": {}, "siglip": {}, "supcon": {}, "dhel": {}, "scl": {}}


def direct(name: str, z: Tensor, index: Tensor, **params: Any) -> list[Tensor]:
    """Value and gradients of a call with all views in one tensor, (V, B, D)."""
    z = z.clone().requires_grad_()
    loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, **params)
    if z.dtype == torch.float64:
        loss_fn.double()
    loss = loss_fn(z, index=index, labels=index % 3)
    return [loss.detach(), *torch.autograd.grad(loss, (z, *loss_fn.parameters()))]


def three_views(step: int, sizes: tuple[int, ...], part: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Three views of the samples of a batch, and their positions in the dataset."""
    batch = global_batch(step, sizes)
    return torch.stack([batch.z1, batch.z2, batch.z1 - batch.z2])[:, part], batch.index[part]


def work_in_ring(rank: int, world: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    place = {"init_method": f"file://{folder}/group", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=world, **place)
    all_sizes = SIZES_OF_RING[world]
    batches = [local_batch(step, sizes, rank) for step, sizes in enumerate(all_sizes)]
    weights = [global_weights(step, sizes)[part_of(sizes, rank)] for step, sizes in enumerate(all_sizes)]
    ring: dict[str, Any] = {"wrap": DistributedDataParallel, "gather": "ring"}
    found: FOUND = {str(c): run(c, batches, **ring) for c in IN_RING}
    found["none"] = {name: run(Configuration(name, {}), batches, weights=weights, reduction="none", **ring) for name in KINDS}
    found["sum"] = {name: run(Configuration(name, {}), batches, reduction="sum", **ring) for name in KINDS}
    found["dense"] = {name: run(Configuration(name, {}), batches, backend="dense", **ring) for name in KINDS}
    found["one view"] = {str(c): run(c, batches, one_view=True, **ring) for c in ONE_VIEW if c in IN_RING}
    for shared in (True, False):
        keys = [local_negatives(step, sizes, rank, shared) for step, sizes in enumerate(all_sizes)]
        found[f"{shared=}"] = {str(c): run(c, batches, negatives=keys, **ring) for c in KEYS_IN_RING[:: 4 if shared else 1]}
    found["three views"] = {}
    for c in VIEWS_IN_RING:
        local = [three_views(step, sizes, part_of(sizes, rank)) for step, sizes in enumerate(all_sizes)]
        found["three views"][c.name] = [direct(c.name, *each, gather="ring") for each in local]
    for dtype in PRECISIONS:
        z = torch.stack([batches[1].z1, batches[1].z2]).to(dtype)
        both = {n: [direct(n, z, batches[1].index, gather=gather) for gather in ("ring", "auto")] for n in KINDS}
        found[str(dtype)] = both
    members = dist.new_group([0, world - 1])
    found["group"] = run(IN_RING[0], batches[:1], gather="ring", process_group=members) if rank in (0, world - 1) else None
    with small_tiles():
        found["tiles"] = {name: run(Configuration(name, {}), batches, **ring) for name in KINDS}
    found["compiled"] = {}
    for name in COMPILED_IN_RING if world == 2 else []:
        found["compiled"][name] = [
            run(Configuration(name, {}), batches, gather="ring", compiled=compiled) for compiled in (True, False)
        ]
    found["cached"] = cached(batches[1], all_sizes[1], rank)
    found["refused"] = refused(batches[0])
    found["measured"] = {name: measured(name, rank, world) for name in MEASURED}
    found["measured when gathered"] = measured("ntxent", rank, world, gather="auto")
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def small_tiles() -> Iterator[None]:
    """Blocks of a few rows in several tiles."""
    before = tiles.TILE_CPU, tiles.SINGLE_TILE_CPU
    tiles.TILE_CPU, tiles.SINGLE_TILE_CPU = 2, 2
    try:
        yield
    finally:
        tiles.TILE_CPU, tiles.SINGLE_TILE_CPU = before


def cached(batch: Any, sizes: tuple[int, ...], rank: int) -> list[Tensor]:
    """Gradients of an encoder from a batch at once and in chunks."""
    found = []
    for chunk_size in (None, 2):
        encoder = torch.nn.Linear(batch.z1.shape[1], 4).double()
        with torch.no_grad():
            encoder.weight.copy_(torch.linspace(-1, 1, encoder.weight.numel()).view_as(encoder.weight))
            encoder.bias.zero_()
        loss_fn = zoo.get_loss("ntxent", gather="ring")
        if chunk_size is None:
            loss_fn(encoder(batch.z1), encoder(batch.z2), index=batch.index).backward()
        else:
            zoo.cached_backward(loss_fn, encoder, (batch.z1, batch.z2), chunk_size=chunk_size, index=batch.index)
        assert encoder.weight.grad is not None
        found.append(encoder.weight.grad)
    return found


def refused(batch: Any) -> dict[str, str]:
    """What is said of what a ring cannot do, and of a batch where nobody has negatives."""
    heard = {}
    for name, loss_fn in {
        "draws": zoo.get_loss("hscl", num_negatives=3, gather="ring"),
        "squares": zoo.get_loss("ntxent", gather="ring"),
        "kernels": zoo.get_loss("ntxent", gather="ring"),
    }.items():
        sums = {
            "squares": lambda batch: batch.pairs.square_sum(*batch.each_view()),
            "kernels": lambda batch: batch.pairs.kernel_sum(batch.x, kernel="log", parameter=1.0),
        }
        if name in sums:
            loss_fn.objective.forward = sums[name]
        try:
            batch.call(loss_fn)
        except ValueError as error:
            heard[name] = str(error)
    return heard


class Watched(TorchDispatchMode):
    """Counts products, and the largest number of rows of any tensor whose last axis is that of features."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor) and each.dim() > 1 and each.shape[-1] == FEATURES:
                self.rows = max(self.rows, each.numel() // FEATURES)
        return out


def measured(name: str, rank: int, world: int, gather: str = "ring") -> dict[str, list[int]]:
    """Forward and backward: products of this process, rows of the largest tensor of features, and bytes sent to a neighbour."""
    draws = torch.Generator().manual_seed(rank)
    z1, z2 = (torch.randn(SAMPLES, FEATURES, generator=draws, dtype=torch.float64, requires_grad=True) for _ in range(2))
    index, exchange, sent = torch.arange(SAMPLES) + rank * SAMPLES, dist.batch_isend_irecv, [0]

    def counting(operations: list[dist.P2POp]) -> Any:
        sent[0] += sum(each.tensor.numel() * each.tensor.element_size() for each in operations if each.op is dist.isend)
        return exchange(operations)

    loss_fn, found = zoo.get_loss(name, gather=gather).double(), {}
    dist.batch_isend_irecv = counting
    try:
        for direction in ("forward", "backward"):
            with Watched() as watched:
                if direction == "forward":
                    loss = loss_fn(z1, z2, index=index, labels=index % 3)
                else:
                    loss.backward()
            found[direction] = [watched.products // FEATURES, watched.rows, sent[0]]
            sent[0] = 0
    finally:
        dist.batch_isend_irecv = exchange
    return found
