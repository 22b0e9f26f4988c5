"""What each process of a group does for the tests in `processes`: one group goes through everything and writes it to files."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import CONFIGURATIONS, NUM_SAMPLES, Configuration, Views, drawn, snapshot, views
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import contrastive_zoo as zoo
from contrastive_zoo.objectives.base import FunctionObjective
from contrastive_zoo.pairwise import sweep
from contrastive_zoo.pairwise.tiled import tiles
from contrastive_zoo.samplers.randomness import DrawTable

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None
if fully_shard is not None and "ignored_params" not in inspect.signature(fully_shard).parameters:
    fully_shard = None  # before torch 2.7

WIDTH, KEYS = 5, 4
# Sizes of the local batches in each step: equal, unequal, and one sample on a process.
SIZES = {2: [(4, 4), (5, 3), (1, 6)], 3: [(3, 3, 3), (1, 5, 2), (4, 1, 1)]}
ENCODED = {"emc2": {"out_of_batch": "encode"}, "negative_cache": {"num_negatives": 4}}
INSIDE = ["dcl", "sogclr", "emc2", *(f"{name}, encode" for name in ENCODED)]
COMPILED = ["sogclr", "ntxent", "emc2"]
SHARDED = ["clip", "siglip", "dcl", "emc2"]
WITH_NEGATIVES = [c for c in CONFIGURATIONS if "negatives" in c.card.uses] + [
    Configuration("infonce", {"symmetric": False, "in_batch": False})
]
ONE_VIEW = [c for c in CONFIGURATIONS if "one_view" in c.card.uses]
ROWS_PER_PROCESS = 48
DRAWING = {"emc2": {}, "negative_cache": {}, "sampled": {"num_negatives": 5}, "hscl": {"num_negatives": 5}}
FOUND = dict[str, Any]


class Negatives(NamedTuple):
    """Extra keys with their positions in the dataset."""

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
    rows = drawn(sum(sizes), KEYS, WIDTH, seed=step)
    index = (drawn(sum(sizes), KEYS, seed=100 + step).abs() * NUM_SAMPLES).long() % NUM_SAMPLES
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


def global_weights(step: int, sizes: tuple[int, ...]) -> Tensor:
    """A weight for each value of the whole batch."""
    return drawn(sum(sizes), seed=50 + step)


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
    weights: list[Tensor] | None = None,
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
        (loss if weights is None else loss * weights[step]).sum().backward()
        losses.append(loss.detach())
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    return {"losses": losses, "gradients": found, "state": snapshot(loss_fn)}


def assert_same(actual: FOUND, expected: FOUND, magnitude: float = 10.0) -> None:
    """Losses, gradients and state that `run` found; ``magnitude`` is that of the terms of a gradient."""
    for step, (loss, wanted) in enumerate(zip(actual["losses"], expected["losses"], strict=True)):
        assert_close(loss, wanted, f"loss of step {step}", magnitude=1.0)
    for step, (some, others) in enumerate(zip(actual["gradients"], expected["gradients"], strict=True)):
        for number, (gradient, wanted) in enumerate(zip(some, others, strict=True)):
            assert_close(gradient, wanted, f"gradient {number} of step {step}", magnitude=magnitude)
    assert actual["state"].keys() == expected["state"].keys()
    for name, tensor in expected["state"].items():
        assert_close(actual["state"][name], tensor, name)


class Model(nn.Module):
    """Encoder and loss as one module."""

    def __init__(self, name: str, **params: Any) -> None:
        super().__init__()
        self.encoder = encoder()
        temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        name, _, encodes = name.partition(", ")
        params |= {**ENCODED[name], "encode": self.encode_sample} if encodes else {}
        self.loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, temperature=temperature, **params).double()

    def encode_sample(self, index: Tensor, view: Tensor) -> Tensor:
        """Features of samples that are not in the batch."""
        samples = drawn(2, NUM_SAMPLES, WIDTH, seed=11)
        return self.encoder(samples[view, index])

    def forward(self, batch: Views) -> Tensor:
        return self.loss_fn(self.encoder(batch.z1), self.encoder(batch.z2), index=batch.index)


def run_inside(name: str, batches: list[Views], wrap: Any = lambda model: model, **params: Any) -> FOUND:
    """The same as `run`, where the loss is inside of what is wrapped, its buffers and temperature included."""
    model = Model(name, **params)
    wrapped = wrap(model)
    losses, found = [], []
    for batch in batches:
        wrapped.zero_grad()
        loss = wrapped(batch)
        loss.backward()
        losses.append(loss.detach())
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    return {"losses": losses, "gradients": found, "state": snapshot(model)}


class Learning(nn.Module):
    """Encoder and a loss that learns something, of shape () or (1,), as one module."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder()
        if name in ("clip", "siglip"):
            self.loss_fn = zoo.get_loss(name).double()
            for parameter in ("logit_scale", "logit_bias") if name == "siglip" else ("logit_scale",):
                value = getattr(self.loss_fn, parameter).detach().reshape(shape)
                setattr(self.loss_fn, parameter, nn.Parameter(value))
        else:
            temperature = nn.Parameter(torch.full(shape, 0.3, dtype=torch.float64))
            self.loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, temperature=temperature, embedding_dim=4).double()

    def forward(self, batch: Views) -> Tensor:
        return self.loss_fn(self.encoder(batch.z1), self.encoder(batch.z2), index=batch.index)


def train_learning(model: nn.Module, batches: list[Views]) -> list[float]:
    """Losses of some steps of SGD."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for batch in batches:
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# What FSDP2 shards: encoder and loss, with what the loss learns as a parameter of one entry or left out; or the encoder.
FSDP = ["whole", "whole but what the loss learns", "encoder"]


def run_sharded(name: str, batches: list[Views], what: str) -> FOUND:
    """Losses and state where FSDP2 shards a module."""
    model, mesh = Learning(name, (1,) if what == "whole" else ()), init_device_mesh(torch.get_default_device().type, (2,))
    if what == "encoder":
        fully_shard(model.encoder, mesh=mesh)
    elif what == "whole":
        fully_shard(model, mesh=mesh)
    else:
        fully_shard(model, mesh=mesh, ignored_params=set(model.loss_fn.parameters()))
    losses = train_learning(model, batches)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    fresh = Learning(name, () if what == "whole" else (1,))
    if dist.get_rank() == 0:  # the whole state is there only
        fresh.load_state_dict(state, strict=True)
    return {"losses": losses, "state": dict(fresh.state_dict())}


def mixed_rows(batch: zoo.Batch, *, temperature: Tensor) -> Tensor:
    """An objective whose rows are not those of the batch: in another order, and each with something of its neighbour."""
    x = torch.cat(batch.each_view())
    x = x + x.roll(1, 0) / 2
    sums = batch.pairs.logsumexp(x, scale=1 / temperature) + batch.pairs.logsumexp(x, x.flip(0) * temperature, scale=1.0)
    return sums.view(2, -1).T


def begin(rank: int, world: int, folder: Path, device: str, seconds: float = 60) -> None:
    """Join the group: processes send through Gloo, and through NCCL what is on GPUs, one for each process.

    Processes that wait for one another in vain fail after some seconds.
    """
    torch.set_num_threads(1)
    backend = "gloo"
    if device != "cpu":
        backend = f"cpu:gloo,{device}:nccl"
        torch.cuda.set_device(rank)
        torch.set_default_device(f"{device}:{rank}")
    place = {"init_method": f"file://{folder}/group", "timeout": timedelta(seconds=seconds)}
    dist.init_process_group(backend, rank=rank, world_size=world, **place)


def started(work: Callable[..., None], world: int, folder: Path, *given: Any, device: str) -> list[FOUND]:
    """What each of some processes wrote that run ``work(rank, folder, *given, device)``, in the order of ranks.

    On "cuda" each process has a GPU of its own.
    """
    if device not in ("cpu", "cuda"):
        pytest.skip(f"processes send through Gloo and NCCL, not between devices of the kind {device!r}")
    if device == "cuda" and torch.cuda.device_count() < world:
        pytest.skip(f"{world} processes need a GPU each, and there are {torch.cuda.device_count()}")
    mp.spawn(work, args=(folder, *given, device), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True, map_location=device) for rank in range(world)]


def work(rank: int, folder: Path, world: int, device: str) -> None:
    """What each process does."""
    begin(rank, world, folder, device)
    sweep.GRAIN = 1  # so that batches of a few rows are shared too
    batches = [local_batch(step, sizes, rank) for step, sizes in enumerate(SIZES[world])]
    ntxent = Configuration("ntxent", {})
    found: FOUND = {str(c): run(c, batches, DistributedDataParallel) for c in CONFIGURATIONS}
    weights = [global_weights(step, sizes)[part_of(sizes, rank)] for step, sizes in enumerate(SIZES[world])]
    found["none"] = {
        str(c): run(c, batches, DistributedDataParallel, weights=weights, reduction="none")
        for c in CONFIGURATIONS
        if c.card.per_sample
    }
    found["none, compiled"] = run(Configuration("dcl", {}), batches, compiled=True, weights=weights, reduction="none")
    found["none, empty"] = one_sample_everywhere(batches[0], reduction="none")
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
    found["settings"] = settings_that_differ(batches[0], rank, world)
    found["encode that fails"] = encode_that_fails(batches, rank, world)
    found["schedule"] = counted_schedule(batches[0]._replace(index=torch.arange(len(batches[0].index))))
    found["chains"] = state_of_one_process(batches, rank, world)
    found["same samples"] = warnings_of_same_samples(local_batch(0, (4,) * world, rank), rank)
    found["entries"] = entries_visited(rank, world)
    found["draws"] = draws_made(rank, world)
    found["sharded"] = {}
    for name in SHARDED if world == 2 and fully_shard is not None else []:
        for what in FSDP:
            found["sharded"][f"{name}, {what}"] = run_sharded(name, batches[:1] * 3, what)
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


def one_sample_everywhere(batch: Views, **params: Any) -> FOUND:
    """All rows of all processes are one sample."""
    return run(Configuration("sogclr", {}), [batch._replace(index=torch.full_like(batch.index, 3))], **params)


def errors(batch: Views, rank: int, world: int) -> dict[str, str]:
    """What a process hears when the last one makes a mistake, and whether a table has changed after all mistakes."""
    last = rank == world - 1
    # On accelerators values are looked at only if this is asked for.
    loss_fn, in_batch = (zoo.get_loss(name, num_samples=NUM_SAMPLES, validate=True) for name in ("sogclr", "ntxent"))
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
    heard = {mistake: _heard(call) for mistake, call in calls.items()}
    heard["table"] = "as before" if all(torch.equal(t, before[n]) for n, t in snapshot(loss_fn).items()) else "changed"
    return heard


def settings(last: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Names with parameters of which the last process has another one."""
    late, encode = 5 if last else 3, {"encode": encoded_at_random} if last else {}

    def schedule(step: Tensor) -> float:
        if last:
            raise ZeroDivisionError("no epochs")
        return 0.5

    return {
        "backend": ("ntxent", {"backend": "dense" if last else "tiled"}),
        "temperature": ("ntxent", {"temperature": 0.2 if last else 0.1}),
        "learned temperature": ("ntxent", {"temperature": nn.Parameter(torch.tensor(0.1)) if last else 0.1}),
        "normalize": ("dcl", {"normalize": "ball" if last else "sphere"}),
        "reduction": ("dcl", {"reduction": "sum" if last else "mean"}),
        "on_empty": ("dcl", {"on_empty": "error" if last else "warn"}),
        "gather": ("dcl", {"gather": "ring" if last else "auto"}),
        "num_samples": ("sogclr", {"num_samples": NUM_SAMPLES + last}),
        "seed": ("emc2", {"seed": int(last)}),
        "beta": ("hcl", {"beta": 2.0 if last else 1.0}),
        "kernel": ("kcl", {"kernel": "log" if last else "gaussian"}),
        "sampler": ("sampled", {"sampler": "topk" if last else "uniform"}),
        "made sampler": ("sampled", {"sampler": zoo.get_sampler("topk", num_samples=NUM_SAMPLES, num_negatives=late)}),
        "schedule": ("sogclr", {"gamma": zoo.CosineSchedule(1.0, 0.2, steps=late)}),
        "function": ("sogclr", {"gamma": lambda step: 0.5 + 0.1 * last}),
        "broken schedule": ("isogclr", {"gamma": schedule}),
        "queue": ("sampled", {"sampler": zoo.get_sampler("queue", num_negatives=16 + last)}),
        "encoder of a sampler": ("sampled", {"sampler": zoo.get_sampler("topk", num_samples=NUM_SAMPLES, **encode)}),
        "embedding_dim": ("emc2", {"embedding_dim": 5 + last}),
        "what is learned": ("siglip", {}),
        "rounded table": ("sogclr", {}),
        "a set": ("dcl", {}),
    }


def encoded_at_random(index: Tensor, view: Tensor) -> Tensor:
    return torch.randn(len(index), WIDTH)


def settings_that_differ(batch: Views, rank: int, world: int) -> dict[str, str]:
    """What a process hears when the last one was made with another setting, or is a step behind."""
    heard = {}
    for setting, (name, params) in settings(rank == world - 1).items():
        loss_fn = zoo.get_loss(name, **{"num_samples": NUM_SAMPLES, **params})
        if setting == "what is learned":
            loss_fn.logit_scale.requires_grad_(rank < world - 1)
        elif setting == "rounded table" and rank == world - 1:
            loss_fn.objective.averages.log_value.data = loss_fn.objective.averages.log_value.data.bfloat16()
        elif setting == "a set":
            loss_fn.objective.agreement = lambda last=rank == world - 1: {"a set": {"a", "c" if last else "b"}}
        heard[setting] = _heard(lambda loss_fn=loss_fn: batch.call(loss_fn))
    behind = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, gather=False)
    if rank < world - 1:
        batch.call(behind)
    behind.gather = "auto"
    heard["steps"] = _heard(lambda: batch.call(behind))
    return heard


def encode_that_fails(batches: list[Views], rank: int, world: int) -> dict[str, Any]:
    """What a process hears when the encoder of the last one raises in the second step, and the third step after that."""
    found: dict[str, Any] = {}
    for name, params in ENCODED.items():
        fails = [False]

        def encode(index: Tensor, view: Tensor, fails: list[bool] = fails) -> Tensor:
            if fails[0]:
                raise OSError("the disk is gone")
            return torch.randn(len(index), WIDTH, dtype=torch.float64)  # another one on each process

        torch.manual_seed(rank)
        loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, encode=encode, **params).double()
        batches[0].call(loss_fn)
        before = snapshot(loss_fn)
        fails[0] = rank == world - 1
        heard = _heard(lambda loss_fn=loss_fn: batches[2].call(loss_fn))
        unchanged = all(torch.equal(tensor, before[name]) for name, tensor in snapshot(loss_fn).items())
        fails[0] = False
        value = batches[2].call(loss_fn).detach()
        found[name] = {"heard": heard, "unchanged": unchanged, "value": value, "state": snapshot(loss_fn)}
    return found


def counted_schedule(batch: Views) -> dict[str, Any]:
    """What a schedule that changes its argument is given in two steps, and the value with one that holds a function."""
    steps: list[int] = []

    def schedule(step: Tensor) -> float:
        steps.append(int(step))
        step.add_(5)
        return 0.5

    loss_fn = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, gamma=schedule).double()
    for _ in range(2):
        batch.call(loss_fn)
    return {"steps": steps, "value": _heard(lambda: batch.call(zoo.get_loss("sogclr", num_samples=9, gamma=Held(abs))))}


@dataclass(frozen=True)
class Held:
    """A schedule that holds a function, whose address differs between processes."""

    function: Callable[[float], float]

    def __call__(self, step: Tensor) -> float:
        return self.function(-0.5)


def state_of_one_process(batches: list[Views], rank: int, world: int) -> str:
    """What a process hears when chains of the last one were reset, so that it has fewer states to encode."""
    loss_fn = zoo.get_loss(
        "emc2", num_samples=NUM_SAMPLES, out_of_batch="encode", encode=lambda index, view: torch.ones(len(index), WIDTH)
    ).double()
    for batch in batches:
        batch.call(loss_fn)
    if rank == world - 1:
        loss_fn.objective.sampler.chain.fill_(-1)
    return _heard(lambda: batches[0].call(loss_fn))


def warnings_of_same_samples(batch: Views, rank: int) -> list[str]:
    """What a process is warned of in three steps with the samples of the first one, the second time in another order."""
    loss_fn = zoo.get_loss("dcl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index = torch.arange(len(batch.index), device="cpu")  # the handshake reads no index on an accelerator
        loss_fn(batch.z1, batch.z2, index=index + 1000 * rank)
        loss_fn(batch.z1, batch.z2)
        for shifted in (index, index.flip(0), index):
            loss_fn(batch.z1, batch.z2, index=shifted if rank else index)
    return [str(warning.message) for warning in caught]


def _heard(call: Callable[[], Tensor]) -> str:
    try:
        return f"a loss of {call():.3f}"
    except (TypeError, ValueError, IndexError, OSError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"


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
    z1, z2 = (drawn(ROWS_PER_PROCESS, 8, seed=2 * rank + view).float().requires_grad_() for view in range(2))
    entries = {}
    for name in ("ntxent", "infonce", "dhel", "kcl", "hcl", "siglip", "isogclr"):
        with counted_entries() as sizes:
            index = torch.arange(ROWS_PER_PROCESS) + rank * ROWS_PER_PROCESS
            zoo.get_loss(name, num_samples=world * ROWS_PER_PROCESS, backend="tiled")(z1, z2, index=index).backward()
        entries[name] = sum(sizes)
    return entries


def draws_made(rank: int, world: int) -> dict[str, int]:
    """Draws that a process asks for in a step of each loss that draws for its anchors."""
    z1, z2 = (drawn(ROWS_PER_PROCESS, 8, seed=2 * rank + view).float().requires_grad_() for view in range(2))
    index, made, uniform = torch.arange(ROWS_PER_PROCESS) + rank * ROWS_PER_PROCESS, {}, DrawTable.uniform
    for name, params in DRAWING.items():
        sizes: list[int] = []

        def counting(self: DrawTable, rows: slice, columns: slice, dtype: torch.dtype, sizes: list[int] = sizes) -> Tensor:
            sizes.append((rows.stop - rows.start) * (columns.stop - columns.start))
            return uniform(self, rows, columns, dtype)

        loss_fn = zoo.get_loss(name, num_samples=world * ROWS_PER_PROCESS, backend="tiled", **params)
        DrawTable.uniform = counting  # type: ignore[method-assign]
        try:
            loss_fn(z1, z2, index=index, labels=index % 3).backward()
        finally:
            DrawTable.uniform = uniform  # type: ignore[method-assign]
        made[name] = sum(sizes)
    return made
