"""What each of four processes does for tests in `processes`: all of them together, and groups of the first two and three."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import CONFIGURATIONS, NAMES, NUM_SAMPLES, STATEFUL, Configuration, drawn, same_state, snapshot, views
from group import FOUND, WIDTH, WITH_NEGATIVES, begin, encoder, global_batch, local_batch, part_of
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import contrastive_zoo as zoo
from contrastive_zoo.pairwise import sweep
from contrastive_zoo.pairwise.tiled import loop, tiles

WORLD = 4
# Sizes of the local batches in each step.
SIZES = {4: [(2, 5, 1, 3), (3, 3, 3, 3)], 3: [(2, 5, 1)], 2: [(2, 5)]}
# Extra negatives of each process.
MINED = (2, 5, 3, 1)
CHUNK = 2
BATCH, COST_WIDTH, CLASSES = 768, 4, 16
COUNTED = [1, 2, 3, 4]
HELD, HELD_BATCH, HELD_WIDTH = ["ntxent", "clip", "siglip"], 128, 2048
# Names that are trained for two epochs by four processes until LEFT batches have been seen, and then by two and by three.
RESUMED = ["sogclr", "isogclr", "emc2", "negative_cache", "hscl"]
LEFT, TRAINED_SAMPLES, TRAINED_BATCH = 4, 36, 12
DRAWING = [c for c in CONFIGURATIONS if c.card.draws and not c.card.stateful and "num_negatives" in c.params]
OTHERS = [  # beside the defaults of every name
    Configuration("ucl", {"num_negatives": 8}),
    Configuration("sampled", {"sampler": "topk"}),
    Configuration("sampled", {"sampler": "queue", "num_negatives": 512}),
    Configuration("emc2", {"out_of_batch": "skip"}),
    Configuration("sogclr", {"intra_view": False}),
    Configuration("isogclr", {"intra_view": False}),
    Configuration("kcl", {"kernel": "log"}),
]
COUNTED_CONFIGURATIONS = [*(Configuration(name, {}) for name in NAMES), *OTHERS]


class Products(TorchDispatchMode):
    """Counts floating-point operations of products, those inside of operators included."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in ("mm", "addmm", "addmm_", "bmm", "baddbmm"):
            a, b = [each for each in args if isinstance(each, Tensor)][-2:]
            self.operations += 2 * a.numel() * b.shape[-1]
        elif name.startswith("_embedding_bag"):  # weighted sums of rows: the gradient, or the rows, and where to look for them
            self.operations += 2 * args[1].numel() * args[0].shape[1]
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_bytes() -> Iterator[list[float]]:
    """Bytes that this process sends in each collective, by ring algorithms."""
    all_gather, all_reduce, sent = dist.all_gather, dist.all_reduce, []

    def gathering(received: list[Tensor], own: Tensor, **options: Any) -> Any:
        sent.append((len(received) - 1) * own.nbytes)
        return all_gather(received, own, **options)

    def reducing(values: Tensor, *given: Any, group: dist.ProcessGroup) -> Any:
        world = dist.get_world_size(group)
        sent.append(2 * (world - 1) / world * values.nbytes)
        return all_reduce(values, *given, group=group)

    dist.all_gather, dist.all_reduce = gathering, reducing
    try:
        yield sent
    finally:
        dist.all_gather, dist.all_reduce = all_gather, all_reduce


def work(rank: int, folder: Path, device: str) -> None:
    """What each process does."""
    begin(rank, WORLD, folder, device)
    groups = {2: dist.new_group([0, 1]), 3: dist.new_group([0, 1, 2]), 4: dist.group.WORLD}
    found: FOUND = {"costs": {world: costs(rank, world, groups.get(world)) for world in COUNTED if rank < world}}
    found["rows held"] = {world: rows_held(rank, world, groups[world]) for world in (2, 4) if rank < world}
    sweep.GRAIN = 1  # so that batches of a few rows are shared too
    found["same"] = {str(c): steps(c, rank) for c in CONFIGURATIONS}
    found["negatives"] = {
        world: {str(c): shared_negatives(c, rank, world, groups[world]) for c in WITH_NEGATIVES}
        for world in SIZES
        if rank < world
    }
    found["negatives refused"] = refused_negatives(rank)
    found["resumed"] = {name: resumed(name, rank, groups, folder) for name in RESUMED}
    found["lost"] = {str(c): lost_exchanges(c, rank, groups[2]) for c in STATEFUL + DRAWING} if rank < 2 else {}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def costs(rank: int, world: int, group: dist.ProcessGroup | None) -> FOUND:
    """Operations and bytes of a step of every name, if there are so many processes."""
    kept, size = loop.KEEP_BYTES, tiles.TILE_CPU
    loop.KEEP_BYTES, tiles.TILE_CPU = 0, 128  # as in a large batch: many tiles, which are computed again
    z = torch.randn(2, BATCH, COST_WIDTH, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    index = torch.arange(BATCH)[own]
    found = {}
    for configuration in COUNTED_CONFIGURATIONS:
        z1, z2 = (view[own].to(torch.get_default_device()).requires_grad_() for view in z)
        loss_fn = configuration.make(num_samples=BATCH, process_group=group, gather=world > 1)
        known = {"labels": index % CLASSES} if "labels" in configuration.card.needs else {}
        with Products() as products, counted_bytes() as sent:
            loss_fn(z1, z2, index=index, **known).backward()
        found[str(configuration)] = {"operations": products.operations, "bytes": sum(sent)}
    loop.KEEP_BYTES, tiles.TILE_CPU = kept, size
    return found


def rows_held(rank: int, world: int, group: dist.ProcessGroup) -> dict[str, int]:
    """Bytes that a step holds at most, of rows so wide that they are most of it."""
    found = {}
    for name in HELD:
        own = [drawn(HELD_BATCH // world, HELD_WIDTH, seed=2 * rank + view).float().requires_grad_() for view in range(2)]
        loss_fn = zoo.get_loss(name, process_group=group)
        peaks = []
        for _ in range(3):  # a first step allocates what others use again
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                loss_fn(*own).backward()
            events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
            peaks.append(max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))))
        found[name] = min(peaks)
    return found


def steps(configuration: Configuration, rank: int) -> FOUND:
    """Values, gradients of this process's features, and state after each step."""
    loss_fn = configuration.learning()
    batches = [local_batch(step, sizes, rank) for step, sizes in enumerate(SIZES[WORLD])]
    return stepped(loss_fn, batches)


def stepped(loss_fn: zoo.Loss, batches: list[Any]) -> FOUND:
    """Values, gradients of features and of what is learned, and state after steps of a loss."""
    losses, found = [], []
    for batch in batches:
        z1, z2 = (z.detach().requires_grad_() for z in (batch.z1, batch.z2))
        loss = loss_fn(z1, z2, index=batch.index, labels=batch.labels)
        losses.append(loss.detach())
        found.append([*torch.autograd.grad(loss, (z1, z2, *loss_fn.parameters()), materialize_grads=True)])
    return {"losses": losses, "gradients": found, "state": snapshot(loss_fn)}


def mined(world: int) -> tuple[Tensor, Tensor]:
    """Extra negatives of all processes, one after another, and their positions; some are of the batch."""
    draws = torch.Generator("cpu").manual_seed(5)
    rows = torch.randn(sum(MINED[:world]), WIDTH, generator=draws, dtype=torch.float64, device="cpu")
    index = torch.randint(NUM_SAMPLES, (len(rows),), generator=draws, device="cpu")
    index[::2] = global_batch(0, SIZES[world][0]).index[: len(index[::2])].cpu()
    return rows.to(torch.get_default_device()), index.to(torch.get_default_device())


def shared_negatives(configuration: Configuration, rank: int, world: int, group: dist.ProcessGroup) -> FOUND:
    """Value, gradients of features and of negatives, by a call and with cached gradients."""
    loss_fn = configuration.learning(gather_negatives=True, process_group=group)
    batch, (rows, index) = local_batch(0, SIZES[world][0], rank), mined(world)
    own = part_of(MINED, rank)
    return contrasted(loss_fn, batch, rows[own], index[own])


def contrasted(loss_fn: zoo.Loss, batch: Any, negatives: Tensor, index: Tensor) -> FOUND:
    """Value and gradients of features, negatives and what is learned; the latter also with cached gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in (batch.z1, batch.z2, negatives)]
    loss = loss_fn(*leaves[:2], index=batch.index, labels=batch.labels, negatives=leaves[2], negatives_index=index)
    found = torch.autograd.grad(loss, [*leaves, *loss_fn.parameters()])
    encoder = torch.nn.Linear(WIDTH, WIDTH, bias=False).double()
    torch.nn.init.eye_(encoder.weight)
    views = tuple(leaf.detach() for leaf in leaves[:2])
    known = {"labels": batch.labels, "negatives": leaves[2].detach(), "negatives_index": index}
    cached = zoo.cached_backward(loss_fn, encoder, views, chunk_size=CHUNK, index=batch.index, **known)
    return {"loss": loss.detach(), "gradients": list(found), "cached": cached, "of encoder": encoder.weight.grad}


class Run:
    """Training that can be stopped and goes on with another number of processes.

    Args:
        name: Name of the loss.
        rank: Rank of this process.
        world: Number of processes.
        group: The processes; None for one process.
    """

    def __init__(self, name: str, rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None) -> None:
        params = {"num_negatives": 3} if name in ("negative_cache", "hscl") else {}
        self.loss_fn = zoo.get_loss(
            name, num_samples=TRAINED_SAMPLES, process_group=group, gather=world > 1, embedding_dim=4, **params
        ).double()
        self.batch_sampler = zoo.get_batch_sampler(
            "shuffle", num_samples=TRAINED_SAMPLES, batch_size=TRAINED_BATCH, num_replicas=world, rank=rank
        )
        self.encoder = encoder()
        self.wrapped = self.encoder if world == 1 else DistributedDataParallel(self.encoder, process_group=group)
        self.optimizer = torch.optim.SGD(self.encoder.parameters(), lr=0.1, momentum=0.9)
        self.data = views(TRAINED_SAMPLES, WIDTH, num_samples=TRAINED_SAMPLES)
        self.seen: list[list[int]] = []

    def parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("loss_fn", "batch_sampler", "encoder", "optimizer")}

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])

    def train(self, epochs: int, until: int | None = None, path: Path | None = None) -> FOUND:
        """Go on until the end of the epochs, or until so many batches have been seen, and write the state then."""
        for epoch in range(self.batch_sampler.epoch, epochs):
            for positions in self.batch_sampler:
                at = torch.tensor(positions)
                z1, z2 = self.wrapped(torch.cat([self.data.z1[at].detach(), self.data.z2[at].detach()])).chunk(2)
                loss = self.loss_fn(z1, z2, index=at, labels=at % 3)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.seen.append(positions)
                if len(self.seen) == until:
                    if path is not None:
                        torch.save({name: part.state_dict() for name, part in self.parts().items()}, path)
                    return self.found()
            self.batch_sampler.set_epoch(epoch + 1)
        return self.found()

    def found(self) -> FOUND:
        state = {**snapshot(self.loss_fn), **{name: t.clone() for name, t in self.encoder.state_dict().items()}}
        return {"seen": self.seen, "state": state}


def resumed(name: str, rank: int, groups: dict[int, dist.ProcessGroup], folder: Path) -> FOUND:
    """What four processes see and hold in the middle of an epoch, and what two and three of them do from there on."""
    path = folder / f"{name}.pt"
    found = {WORLD: Run(name, rank, WORLD, groups[WORLD]).train(2, LEFT, path if rank == 0 else None)}
    dist.barrier()
    for world in (2, 3):
        if rank < world:
            run = Run(name, rank, world, groups[world])
            run.load(path)
            found[world] = run.train(2)
    return found


def lost_exchanges(configuration: Configuration, rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """Whether state is as before when a sum over processes of the second step is lost; for each of its sums."""
    all_reduce, numbers = dist.all_reduce, {"lost": -1, "seen": 0}

    def losing(*given: Any, **options: Any) -> Any:
        numbers["seen"] += 1
        if numbers["seen"] == numbers["lost"]:
            raise RuntimeError("connection closed by peer")
        return all_reduce(*given, **options)

    loss_fn = configuration.learning(process_group=group)
    first, second = (local_batch(step, sizes, rank) for step, sizes in enumerate([(2, 5), (3, 3)]))
    first.call(loss_fn)
    found = []
    dist.all_reduce = losing
    try:
        while not found or found[-1]["heard"].startswith("RuntimeError: connection closed"):
            before = snapshot(loss_fn)
            numbers.update(lost=numbers["lost"] + 1 if found else 1, seen=0)
            found.append({"heard": heard(lambda: second.call(loss_fn))})
            found[-1]["unchanged"] = same_state(snapshot(loss_fn), before)
    finally:
        dist.all_reduce = all_reduce
    return {"sums": len(found) - 1, "unchanged": all(each["unchanged"] for each in found[:-1]), "then": found[-1]["heard"]}


def heard(call: Callable[[], Tensor]) -> str:
    """The error of a call."""
    try:
        return f"a loss of {call():.3f}"
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def refused_negatives(rank: int) -> dict[str, str]:
    """What a process hears of negatives that cannot be shared."""
    z, last = torch.eye(4), rank == WORLD - 1
    index = torch.arange(4) + 4 * rank
    loss_fn = zoo.get_loss("ntxent", gather_negatives=True)
    other = zoo.get_loss("ntxent", gather_negatives=not last)
    calls = {
        "of each sample": lambda: loss_fn(z, z, negatives=torch.ones(4, 2, 4) if last else z),
        "a gradient on one": lambda: loss_fn(z, z, negatives=z.clone().requires_grad_(last)),
        "positions on one": lambda: loss_fn(z, z, index=index, negatives=z, negatives_index=index if last else None),
        "another setting": lambda: other(z, z, negatives=z),
        "none on one": lambda: loss_fn(z, z, negatives=None if last else z),
    }
    return {mistake: heard(call) for mistake, call in calls.items()}
