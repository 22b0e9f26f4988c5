"""What each process of a group does for the tests in `processes`: one group goes through everything and writes it to files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from cases import CONFIGURATIONS, NUM_SAMPLES, Configuration, Views, snapshot, views
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import contrastive_zoo as zoo
from contrastive_zoo.objective import FunctionObjective
from contrastive_zoo.pairwise import tiles

WIDTH, KEYS = 5, 4
# Sizes of the local batches in each step: equal, unequal, and one sample on a process.
SIZES = {2: [(4, 4), (5, 3), (1, 6)], 3: [(3, 3, 3), (1, 5, 2), (4, 1, 1)]}
ENCODED = {"emc2": {"out_of_batch": "encode"}, "negative_cache": {"num_negatives": 4}}
INSIDE = ["dcl", "sogclr", "emc2", *(f"{name}, encode" for name in ENCODED)]
COMPILED = ["sogclr", "ntxent"]
WITH_NEGATIVES = [c for c in CONFIGURATIONS if "negatives" in c.card.uses] + [
    Configuration("infonce", {"symmetric": False, "in_batch": False})
]
ONE_VIEW = [c for c in CONFIGURATIONS if "one_view" in c.card.uses]
ROWS_PER_PROCESS = 48
FOUND = dict[str, Any]


class Negatives(NamedTuple):
    """Extra keys with their positions in the data set."""

    rows: Tensor
    index: Tensor


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 4).double()


def global_batch(step: int, sizes: tuple[int, ...]) -> Views:
    """In the second step one sample is on the first and the last process."""
    batch = views(sum(sizes), WIDTH, seed=step)
    if step == 1:
        batch.index[-1] = batch.index[0]
    return detached(batch)


def part_of(sizes: tuple[int, ...], rank: int) -> slice:
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def local_batch(step: int, sizes: tuple[int, ...], rank: int) -> Views:
    return Views(*(leaf[part_of(sizes, rank)] for leaf in global_batch(step, sizes)))


def global_negatives(step: int, sizes: tuple[int, ...], shared: bool) -> Negatives:
    """Keys of each sample, (B, M, D); if ``shared``, those of samples on one process are the same. Some are of the batch."""
    draws = torch.Generator().manual_seed(step)
    rows = torch.randn(sum(sizes), KEYS, WIDTH, generator=draws, dtype=torch.float64)
    index = torch.randint(NUM_SAMPLES, (sum(sizes), KEYS), generator=draws)
    index[:, 0], index[:, 1] = global_batch(step, sizes).index, global_batch(step, sizes).index[0]
    if shared:
        for rank in range(len(sizes)):
            part = part_of(sizes, rank)
            rows[part], index[part] = rows[part.start].clone(), index[part.start].clone()
    return Negatives(rows, index)


def local_negatives(step: int, sizes: tuple[int, ...], rank: int, shared: bool) -> Negatives:
    """Keys of a process, (M, D) if ``shared``."""
    part = part_of(sizes, rank)
    return Negatives(*(t[part.start] if shared else t[part] for t in global_negatives(step, sizes, shared)))


def detached(batch: Views) -> Views:
    return Views(*(leaf.detach() for leaf in batch))


def run(
    configuration: Configuration,
    batches: list[Views],
    wrap: Any = lambda model: model,
    negatives: list[Negatives] | None = None,
    objective: Callable[..., Tensor] | None = None,
    compiled: bool = False,
    one_view: bool = False,
    **params: Any,
) -> FOUND:
    """Losses, gradients of the encoder and of a learned temperature, and state after some steps."""
    if "temperature" in configuration.card.parameters:
        params["temperature"] = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    loss_fn, model = configuration.make(**params).double(), wrap(encoder())
    if objective is not None:
        loss_fn.objective = FunctionObjective(objective, {"temperature": params["temperature"]})
    called = torch.compile(loss_fn, backend="eager") if compiled else loss_fn
    losses, found = [], []
    for step, batch in enumerate(batches):
        extra = {}
        if negatives is not None:
            extra = {"negatives": model(negatives[step].rows), "negatives_index": negatives[step].index}
        features = [model(batch.z1)] if one_view else [model(batch.z1), model(batch.z2)]
        loss = called(*features, index=batch.index, labels=batch.labels, **extra)
        parameters = [*model.parameters(), *loss_fn.parameters()]
        for parameter in parameters:
            parameter.grad = None
        loss.sum().backward()
        losses.append(loss.detach())
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    return {"losses": losses, "gradients": found, "state": snapshot(loss_fn)}


class Model(nn.Module):
    """Encoder and loss as one module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = encoder()
        temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        name, _, encodes = name.partition(", ")
        params = {**ENCODED[name], "encode": self.encode_sample} if encodes else {}
        self.loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, temperature=temperature, **params).double()

    def encode_sample(self, index: Tensor, view: Tensor) -> Tensor:
        """Features of samples that are not in the batch."""
        draws = torch.Generator().manual_seed(11)
        samples = torch.randn(2, NUM_SAMPLES, WIDTH, generator=draws, dtype=torch.float64)
        return self.encoder(samples[view, index])

    def forward(self, batch: Views) -> Tensor:
        return self.loss_fn(self.encoder(batch.z1), self.encoder(batch.z2), index=batch.index)


def run_inside(name: str, batches: list[Views], wrap: Any = lambda model: model) -> FOUND:
    """The same as `run`, where the loss is inside of what is wrapped, its buffers and temperature included."""
    model = Model(name)
    wrapped = wrap(model)
    losses, found = [], []
    for batch in batches:
        wrapped.zero_grad()
        loss = wrapped(batch)
        loss.backward()
        losses.append(loss.detach())
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    return {"losses": losses, "gradients": found, "state": {name: t.clone() for name, t in model.state_dict().items()}}


def mixed_rows(batch: zoo.Batch, *, temperature: Tensor) -> Tensor:
    """An objective whose rows are not those of the batch: in another order, and each with something of its neighbour."""
    x = torch.cat(batch.each_view())
    x = x + x.roll(1, 0) / 2
    sums = batch.pairs.logsumexp(x, scale=1 / temperature) + batch.pairs.logsumexp(x, x.flip(0) * temperature, scale=1.0)
    return sums.view(2, -1).T


def work(rank: int, world: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    tiles.GRAIN = 1  # so that batches of a few rows are shared too
    # Processes that wait for one another in vain fail soon.
    place = {"init_method": f"file://{folder}/group", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=world, **place)
    batches = [local_batch(step, sizes, rank) for step, sizes in enumerate(SIZES[world])]
    ntxent = Configuration("ntxent", {})
    found: FOUND = {str(c): run(c, batches, DistributedDataParallel) for c in CONFIGURATIONS}
    found["none"] = run(Configuration("dcl", {}), batches, DistributedDataParallel, reduction="none")
    found["one view"] = {str(c): run(c, batches, DistributedDataParallel, one_view=True) for c in ONE_VIEW}
    found["dense"] = run(ntxent, batches, DistributedDataParallel, backend="dense")
    found["local"] = run(ntxent, batches[:1], gather=False)
    two = dist.new_group([0, 1])
    found["group"] = run(ntxent, batches[:1], process_group=two) if rank < 2 else None
    found["inside"] = {name: run_inside(name, batches, DistributedDataParallel) for name in INSIDE}
    found["eval"] = alone_in_eval(batches[0]) if rank == 0 else None
    dist.barrier()
    found["empty"] = one_sample_everywhere(batches[0])
    for shared in (True, False):
        keys = [local_negatives(step, sizes, rank, shared) for step, sizes in enumerate(SIZES[world])]
        for c in WITH_NEGATIVES:
            found[f"{c} with {shared=}"] = run(c, batches, DistributedDataParallel, negatives=keys)
    found["dense with negatives"] = run(ntxent, batches, DistributedDataParallel, negatives=keys, backend="dense")
    found["mixed rows"] = run(ntxent, batches, DistributedDataParallel, objective=mixed_rows)
    found["errors"] = errors(batches[0], rank, world)
    found["entries"] = entries_visited(rank, world)
    found["compiled"] = {}
    for name in COMPILED if world == 2 else []:
        given = keys if name == "ntxent" else None
        found["compiled"][name] = run(Configuration(name, {}), batches, negatives=given, compiled=True)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def alone_in_eval(batch: Views) -> Tensor:
    """One process evaluates while the others do not: nothing may wait for them."""
    loss_fn = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES).double().eval()
    value: Tensor = loss_fn(batch.z1, batch.z2)
    return value


def one_sample_everywhere(batch: Views) -> FOUND:
    """All rows of all processes are one sample."""
    return run(Configuration("sogclr", {}), [batch._replace(index=torch.full_like(batch.index, 3))])


def errors(batch: Views, rank: int, world: int) -> dict[str, str]:
    """What a process hears when the last one makes a mistake, and whether a table has changed after all mistakes."""
    last = rank == world - 1
    loss_fn, in_batch = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES), zoo.get_loss("ntxent")
    before = snapshot(loss_fn)
    z1, z2, index, _ = batch
    broken = torch.full_like(z1, torch.nan) if last else z1
    calls: dict[str, Callable[[], Tensor]] = {
        "nan": lambda: loss_fn(z1, broken, index=index),
        "nan in negatives": lambda: in_batch(z1, z2, negatives=broken),
        "shape": lambda: loss_fn(z1, z2[:, :3] if last else z2, index=index),
        "no index": lambda: loss_fn(z1, z2, index=None if last else index),
        "index that others lack": lambda: in_batch(z1, z2, index=index if last else None),
        "width": lambda: loss_fn(z1[:, :3] if last else z1, z2[:, :3] if last else z2, index=index),
        "another loss": lambda: (in_batch if last else loss_fn)(z1, z2, index=index),
        "index out of range": lambda: loss_fn(z1, z2, index=index + NUM_SAMPLES if last else index),
        "nothing wrong": lambda: in_batch(z1, z2),
    }
    heard = {}
    for mistake, call in calls.items():
        try:
            heard[mistake] = f"a loss of {call():.3f}"
        except (TypeError, ValueError, IndexError) as error:
            heard[mistake] = f"{type(error).__name__}: {error}"
    heard["table"] = "as before" if all(torch.equal(t, before[n]) for n, t in snapshot(loss_fn).items()) else "changed"
    return heard


@contextmanager
def counted_entries() -> Iterator[list[int]]:
    """Sizes of the tiles that are visited."""
    visit, sizes = tiles.Tiles.__iter__, []

    def counting(self: tiles.Tiles) -> Iterator[tuple[slice, slice]]:
        for rows, columns in visit(self):
            sizes.append((rows.stop - rows.start) * (columns.stop - columns.start))
            yield rows, columns

    tiles.Tiles.__iter__ = counting  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        tiles.Tiles.__iter__ = visit  # type: ignore[method-assign]


def entries_visited(rank: int, world: int) -> dict[str, int]:
    """Entries of the matrix of pairs that a process computes in a step of each loss that sums over pairs."""
    draws = torch.Generator().manual_seed(rank)
    z1, z2 = (torch.randn(ROWS_PER_PROCESS, 8, generator=draws, requires_grad=True) for _ in range(2))
    entries = {}
    for name in ("ntxent", "infonce", "dhel", "kcl", "hcl"):
        with counted_entries() as sizes:
            zoo.get_loss(name)(z1, z2).backward()
        entries[name] = sum(sizes)
    return entries
