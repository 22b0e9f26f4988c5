"""What each process of a group does for the tests of sharded tables, in the manner of `group.py`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import NUM_SAMPLES, WITH_TABLES, Configuration, Views, same_state, snapshot
from group import FOUND, SIZES, WIDTH, global_batch, local_batch, run, run_inside
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import contrastive_zoo as zoo
from contrastive_zoo import Loss
from contrastive_zoo.pairwise import sweep
from contrastive_zoo.samplers import memory

OBJECTIVES = ["sogclr", "isogclr", "emc2", "negative_cache", "sampled"]
INSIDE = ["sogclr", "emc2", "negative_cache, encode"]
COMPILED = ["isogclr", "negative_cache"]
# The last of three processes holds none of four rows.
FEW = 4
# Batches of a run that goes on with other numbers of processes: 9 samples in each step, 4 steps on each.
STEPS = range(4), range(4, 8)
DIVIDED = {1: (9,), 2: (4, 5), 3: (3, 2, 4)}
# Losses whose messages are counted in a step, and samples of each process in that step.
SENDING: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OBJECTIVES},
    "sogclr of two modalities": ("sogclr", {"intra_view": False}),
    "isogclr of two modalities": ("isogclr", {"intra_view": False}),
    "emc2 with skip": ("emc2", {"out_of_batch": "skip"}),
    "negative_cache that encodes": ("negative_cache", {"encode": lambda index, view: torch.ones(len(index), WIDTH)}),
}
COUNTED = 6


def few(batches: list[Views]) -> list[Views]:
    """The same batches of a dataset of a few samples."""
    return [batch._replace(index=batch.index % FEW) for batch in batches]


def made(name: str, **params: Any) -> Loss:
    """A loss in float32 whose embeddings have a width from the beginning, as distributed checkpoints need them."""
    width = {} if "sogclr" in name else {"embedding_dim": WIDTH}
    return zoo.get_loss(name, **{"num_samples": NUM_SAMPLES, **width, **params})


def train(loss_fn: Loss, steps: range, world: int, rank: int) -> Tensor:
    """The losses of some steps."""
    batches = [local_batch(step, DIVIDED[world], rank) for step in steps]
    return torch.stack([batch._replace(z1=batch.z1.float(), z2=batch.z2.float()).call(loss_fn).detach() for batch in batches])


def load(loss_fn: Loss, folder: Path, group: Any = None) -> None:
    """Load a distributed checkpoint."""
    state = loss_fn.state_dict()
    dcp.load(state, checkpoint_id=folder, process_group=group)
    loss_fn.load_state_dict(state)


def work(rank: int, world: int, folder: Path) -> None:
    """What each process does; two save what three load."""
    torch.set_num_threads(1)
    sweep.GRAIN = 1
    place = {"init_method": f"file://{folder}/group{world}", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=world, **place)
    batches = [local_batch(step, sizes, rank) for step, sizes in enumerate(SIZES[world])]
    found: FOUND = {"runs": {}, "few": {}, "inside": {}, "compiled": {}, "same bits": {}}
    for c in WITH_TABLES:
        sharded = found["runs"][str(c)] = run(c, batches, DistributedDataParallel, tables="sharded")
        if not c.params:
            replicated = run(c, batches, DistributedDataParallel)
            found["same bits"][str(c)] = same_state(sharded["state"], replicated["state"])
        if not c.params or c.name == "sampled":
            found["few"][str(c)] = run(c, few(batches), DistributedDataParallel, num_samples=FEW, tables="sharded")
    for name in INSIDE:
        found["inside"][name] = run_inside(name, batches, DistributedDataParallel, tables="sharded")
    for name in COMPILED if world == 2 else []:
        found["compiled"][name] = run(Configuration(name, {}), batches, compiled=True, tables="sharded")
    found["moved"] = {name: moved(name, rank, world, folder) for name in OBJECTIVES}
    found["kept"] = {name: kept(name, batches, rank) for name in OBJECTIVES}
    found["grown"] = {name: grown(name, batches) for name in OBJECTIVES}
    found["messages"] = {case: messages(*SENDING[case], rank) for case in SENDING}
    found["searched"] = searched(rank)
    found["heard"] = refusals(batches[0], rank, world)
    found["encoder"] = failing_encoder(batches, rank == world - 1)
    found["bytes"] = {name: bytes_held(name) for name in OBJECTIVES}
    torch.save(found, folder / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def moved(name: str, rank: int, world: int, folder: Path) -> FOUND:
    """Two processes train and save; three load, go on and save; two of the three load that."""
    loss_fn = made(name, tables="sharded")
    if world == 2:
        losses = train(loss_fn, STEPS[0], world, rank)
        dcp.save(loss_fn.state_dict(), checkpoint_id=folder / f"{name} of 2")
        return {"losses": losses, "state": snapshot(loss_fn)}
    load(loss_fn, folder / f"{name} of 2")
    losses = train(loss_fn, STEPS[1], world, rank)
    dcp.save(loss_fn.state_dict(), checkpoint_id=folder / f"{name} of 3")
    found = {"losses": losses, "state": snapshot(loss_fn)}
    two = dist.new_group([1, 2])
    if rank > 0:
        loss_fn = made(name, tables="sharded", process_group=two)
        load(loss_fn, folder / f"{name} of 3", two)
        found["on two again"] = same_state(snapshot(loss_fn), found["state"])
    return found


def kept(name: str, batches: list[Views], rank: int) -> dict[str, bool]:
    """Whether a sharded loss keeps what others keep."""
    replicated, sharded = made(name), made(name, tables="sharded")
    fresh = snapshot(sharded)
    for batch in batches:
        for loss_fn in (replicated, sharded):
            batch.call(loss_fn)
    state, copy = snapshot(sharded), deepcopy(sharded)
    wanted = torch.arange(rank, NUM_SAMPLES - rank)  # each process wants others
    rows, table = sharded.table(wanted), replicated.table()
    of_whole, of_shards = made(name, tables="sharded"), made(name)
    of_whole.load_state_dict(replicated.state_dict())
    of_shards.load_state_dict(sharded.state_dict())
    of_table = made(name, tables="sharded")
    of_table.load_table(**table)
    again = of_table.table(torch.arange(NUM_SAMPLES))
    elsewhere = deepcopy(sharded).to("meta").to_empty(device="cpu")
    elsewhere.reset_parameters()
    copy.half()
    return {
        "rows": all(torch.allclose(rows[key], table[key][wanted], rtol=1e-5) for key in table),
        "rows of a replicated one": all(torch.equal(replicated.table(wanted)[key], table[key][wanted]) for key in table),
        "whole into shards": same_state(snapshot(of_whole), snapshot(replicated)),
        "shards into whole": same_state(snapshot(of_shards), state),
        "table": all(torch.allclose(again[key], table[key], rtol=1e-5) for key in table),
        "copy in half precision": same_state(snapshot(copy), state),
        "reset": same_state(snapshot(elsewhere), fresh),
        "no buffers": not {shape[0] for shape in map(tuple, map(Tensor.size, sharded.buffers())) if shape},
        "eval": sharded.eval()(batches[rank].z1, batches[rank].z2).isfinite().item(),  # no process waits for another
    }


def grown(name: str, batches: list[Views]) -> bool:
    """Whether a loss whose dataset has grown goes on as one that was made for it."""
    losses = made(name, tables="sharded"), made(name, tables="sharded", num_samples=NUM_SAMPLES + 11)
    for loss_fn in losses:
        batches[0].call(loss_fn)
    losses[0].resize(NUM_SAMPLES + 11)
    for loss_fn in losses:
        batches[1]._replace(index=batches[1].index + 11).call(loss_fn)
    return same_state(*map(snapshot, losses))


@contextmanager
def sent() -> Iterator[list[tuple[str, int]]]:
    """Messages that a process sends: which operation, and bytes of its tensor."""
    names, found = ("all_reduce", "all_to_all_single", "all_gather"), []
    original = {name: getattr(dist, name) for name in names}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = args[0] if name == "all_reduce" else args[1]
            found.append((name, tensor.numel() * tensor.element_size()))
            return original[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, counting(name))
    try:
        yield found
    finally:
        for name in names:
            setattr(dist, name, original[name])


def counted_step(loss_fn: Loss, rank: int) -> None:
    """A step, forward and backward."""
    draws = torch.Generator().manual_seed(rank)
    z1, z2 = (torch.randn(COUNTED, WIDTH, generator=draws, requires_grad=True) for _ in range(2))
    loss_fn(z1, z2, index=torch.arange(COUNTED) + COUNTED * rank).backward()


def messages(name: str, params: dict[str, Any], rank: int) -> dict[str, list[tuple[str, int]]]:
    """Messages of a step of a replicated and of a sharded loss."""
    found = {}
    for tables in ("replicated", "sharded"):
        loss_fn = made(name, tables=tables, **params)
        with sent() as found[tables]:
            counted_step(loss_fn, rank)
    return found


def searched(rank: int) -> int:
    """Scores of anchors and stored embeddings that a process computes in a step."""
    tiles, sizes = memory._tiles, []

    def counting(*args: Any) -> Iterator[tuple[slice, slice, Tensor]]:
        for tile in tiles(*args):
            sizes.append(tile[2].numel())
            yield tile

    memory._tiles = counting
    try:
        counted_step(made("negative_cache", tables="sharded"), rank)
    finally:
        memory._tiles = tiles
    return sum(sizes)


def bytes_held(name: str) -> tuple[int, int]:
    """Bytes of the tables on this process, sharded and replicated."""
    sizes = []
    for tables in ("sharded", "replicated"):
        tensors = made(name, tables=tables).state_dict().values()
        held = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors if tensor.dim()]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in held))
    return sizes[0], sizes[1]


def refusals(batch: Views, rank: int, world: int) -> dict[str, str]:
    """What a process hears."""
    last = rank == world - 1
    loss_fn = made("sogclr", tables="sharded")
    sampler = zoo.get_sampler("topk", num_samples=NUM_SAMPLES, num_negatives=3)
    of_object = made("sampled", embedding_dim=None, tables="sharded", sampler=sampler)

    def another_group() -> None:
        loss_fn.process_group = dist.new_group(list(range(world)))
        batch.call(loss_fn)

    calls: dict[str, Callable[[], Any]] = {
        "table": loss_fn.table,
        "position": lambda: loss_fn.table(torch.tensor([NUM_SAMPLES if last else 0])),
        "tables": lambda: batch.call(made("sogclr", tables="replicated" if last else "sharded")),
        "assigned": lambda: setattr(loss_fn, "tables", "replicated"),
        "not gathered": lambda: made("sogclr", tables="sharded", gather=False),
        "no longer gathered": lambda: setattr(loss_fn, "gather", False),
        "queue": lambda: zoo.get_loss("sampled", num_samples=9, sampler="queue", tables="sharded"),
        "sampler": lambda: sampler(batch.z1, batch.z2, index=batch.index),
        "rows": lambda: loss_fn.load_state_dict(made("sogclr", num_samples=NUM_SAMPLES - 1).state_dict()),
        "width": lambda: batch.call(made("emc2", embedding_dim=WIDTH + last, tables="sharded")),
        "stateless": lambda: zoo.get_loss("ntxent", tables="sharded")(batch.z1, batch.z2).isfinite().item(),
        "sampler object": lambda: batch.call(of_object.double()).isfinite().item(),
        "another group": another_group,
    }
    heard = {}
    for name, call in calls.items():
        try:
            heard[name] = str(call())
        except (TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
            heard[name] = f"{type(error).__name__}: {error}"
    return heard


def failing_encoder(batches: list[Views], fails: bool) -> bool:
    """Whether tables stay as they were when the encoder of the last process raises."""
    broken = [False]

    def encode(index: Tensor, view: Tensor) -> Tensor:
        if broken[0]:
            raise OSError("the disk is gone")
        return nn.functional.one_hot(index % WIDTH, WIDTH).double()

    loss_fn = zoo.get_loss("negative_cache", num_samples=NUM_SAMPLES, encode=encode, tables="sharded").double()
    batches[0].call(loss_fn)
    before, broken[0] = snapshot(loss_fn), fails
    try:
        batches[2].call(loss_fn)
    except (OSError, ValueError):
        return same_state(snapshot(loss_fn), before)
    return False


def whole_batches(world: int) -> list[Views]:
    """What all processes have together."""
    return [global_batch(step, sizes) for step, sizes in enumerate(SIZES[world])]
