"""Gradient caching under wrappers that synchronise gradients: those of one process, reduced once per step."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import CONFIGURATIONS, Configuration, Views, guaranteed, views
from group import begin, started
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import contrastive_zoo as zoo

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # older versions of PyTorch shard on GPUs only
    fully_shard = None

WIDTH, CHUNK, STEPS = 5, 2, 2
SIZES = (5, 4)  # three chunks on the first process, two on the second
FOUND = dict[str, Any]


class Running(nn.Module):
    """Reads and moves a buffer in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.5)
        return x - self.mean


def encoder(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Linear(WIDTH, 4)).double()


def global_batch(step: int) -> Views:
    return Views(*(leaf.detach() for leaf in views(sum(SIZES), WIDTH, seed=step)))


def local_batch(step: int, rank: int) -> Views:
    start = sum(SIZES[:rank])
    return Views(*(leaf[start : start + SIZES[rank]] for leaf in global_batch(step)))


def taken(*modules: nn.Module) -> list[Tensor]:
    """Gradients of all parameters, which are cleared."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def run_cached(configuration: Configuration, rank: int) -> FOUND:
    """Losses, gradients, state, and the number of reductions in some steps."""
    loss_fn, model = configuration.learning(), DistributedDataParallel(encoder())
    losses, found, reductions = [], [], []
    model.register_comm_hook(None, lambda _, bucket: [reductions.append(1), allreduce_hook(None, bucket)][1])
    for step in range(STEPS):
        batch = local_batch(step, rank)
        losses.append(
            zoo.cached_backward(loss_fn, model, (batch.z1, batch.z2), chunk_size=CHUNK, index=batch.index, labels=batch.labels)
        )
        found.append(taken(model, loss_fn))
    return {"losses": losses, "gradients": found, "state": loss_fn.state_dict(), "reductions": len(reductions)}


def run_with_running_buffer(rank: int) -> FOUND:
    """Features of all forward passes and the buffer at the end, where the processes start from different buffers."""
    model, features = DistributedDataParallel(encoder(Running())), []
    model.module[0].mean.fill_(1.0 + rank)
    model.module.register_forward_hook(lambda module, given, output: features.append(output.detach()))
    batch = local_batch(0, rank)
    zoo.cached_backward(zoo.get_loss("dcl"), model, (batch.z1, batch.z2), chunk_size=CHUNK)
    return {"features": features, "mean": model.module[0].mean}


class Whole(nn.Module):
    """Encoder and loss in one module, with a learned temperature, as many people write it."""

    def __init__(self, call: Callable[..., Tensor] = zoo.cached_loss) -> None:
        super().__init__()
        torch.manual_seed(1)
        temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.encoder, self.loss_fn = (
            encoder(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            zoo.get_loss("ntxent", temperature=temperature),
        )
        self.call = call

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return self.call(self.loss_fn, self.encoder, (z1, z2), chunk_size=CHUNK)


Step = tuple[list[DistributedDataParallel], Callable[[Tensor, Tensor], object]]


def outside_forward(**options: bool) -> Step:
    """One wrapper around everything, which returns the loss."""
    wrapped = DistributedDataParallel(Whole(), **options)
    return [wrapped], lambda z1, z2: wrapped(z1, z2).backward()


def inside_forward(**options: bool) -> Step:
    """One wrapper around everything, whose forward pass runs the backward pass too."""
    wrapped = DistributedDataParallel(Whole(zoo.cached_backward), **options)
    return [wrapped], wrapped


def two_wrappers(**options: bool) -> Step:
    """Encoder and loss have a wrapper each."""
    whole = Whole()
    model, loss_fn = (DistributedDataParallel(part, **options) for part in (whole.encoder, whole.loss_fn))
    return [model, loss_fn], lambda z1, z2: zoo.cached_backward(loss_fn, model, (z1, z2), chunk_size=CHUNK)


def wrapper_inside_encoder(**options: bool) -> Step:
    """The encoder holds a wrapper; the loss needs none."""
    whole = Whole()
    model = nn.Sequential(DistributedDataParallel(whole.encoder, **options), nn.Identity())
    loss_fn = DistributedDataParallel(whole.loss_fn)
    return [model[0], loss_fn], lambda z1, z2: zoo.cached_loss(loss_fn, model, (z1, z2), chunk_size=CHUNK).backward()


def wrapper_inside_function(**options: bool) -> Step:
    """The encoder is a function that hides its wrapper."""
    whole = Whole()
    model, loss_fn = (DistributedDataParallel(part, **options) for part in (whole.encoder, whole.loss_fn))
    return [model, loss_fn], lambda z1, z2: zoo.cached_backward(loss_fn, lambda x: model(x), (z1, z2), chunk_size=CHUNK)


class WithTemperature(nn.Module):
    """An encoder that holds the temperature which the loss reads."""

    def __init__(self) -> None:
        super().__init__()
        whole = Whole()
        self.encoder, self.temperature = whole.encoder, whole.loss_fn.temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def parameter_beside_encoder(**options: bool) -> Step:
    """The wrapper holds a parameter that gets its gradient before the encoder does."""
    model = DistributedDataParallel(WithTemperature(), **options)
    loss_fn = zoo.get_loss("ntxent", temperature=model.module.temperature)
    return [model], lambda z1, z2: zoo.cached_backward(loss_fn, model, (z1, z2), chunk_size=CHUNK)


WRAPPINGS = [
    outside_forward,
    inside_forward,
    two_wrappers,
    parameter_beside_encoder,
    wrapper_inside_encoder,
    wrapper_inside_function,
]
OPTIONS: dict[str, dict[str, bool]] = {
    "as it comes": {},
    "unused parameters": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "bucket views": {"gradient_as_bucket_view": True},
}
REFUSED = {
    (inside_forward, "static graph"): "Return cached_loss(...) from the forward pass",
    (wrapper_inside_function, "static graph"): "Give the wrapped module itself",
}
# The wrapper itself takes a parameter for unused that it does not see in the output of its module.
IMPOSSIBLE = [*REFUSED, (parameter_beside_encoder, "unused parameters")]
TRAINED = [(wrapping.__name__, option) for wrapping in WRAPPINGS for option in OPTIONS if (wrapping, option) not in IMPOSSIBLE]
TRAINING_STEPS, PARTS = 3, 2  # the gradients of some batches accumulate in each step


def run_wrapped(wrapping: Callable[..., Step], options: dict[str, bool], rank: int) -> FOUND:
    """Parameters after some steps, and how often each wrapper reduced gradients."""
    (wrappers, step), reductions = wrapping(**options), [0, 0]

    def reduce(number: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        reductions[number] += bucket.is_last()
        return allreduce_hook(None, bucket)

    for number, wrapper in enumerate(wrappers):
        wrapper.register_comm_hook(number, reduce)
    parameters = sorted((p for wrapper in wrappers for p in wrapper.parameters()), key=Tensor.numel)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for number in range(TRAINING_STEPS):
        optimizer.zero_grad()
        for part in range(PARTS):
            batch = local_batch(number * PARTS + part, rank)
            # The first backward pass of a static graph cannot be without a reduction.
            more = part < PARTS - 1 and not (number == 0 and "static_graph" in options)
            with ExitStack() as stack:
                for wrapper in wrappers if more else []:
                    stack.enter_context(wrapper.no_sync())
                step(batch.z1, batch.z2)
        optimizer.step()
    return {"parameters": [parameter.detach() for parameter in parameters], "reductions": reductions[: len(wrappers)]}


def run_sharded(rank: int) -> FOUND:
    """Parameters after some steps of an encoder that FSDP shards, and what a call inside a sharded module is told."""
    mesh, whole = init_device_mesh(torch.get_default_device().type, (len(SIZES),)), Whole()
    fully_shard(whole.encoder[0], mesh=mesh)
    fully_shard(whole.encoder, mesh=mesh)
    optimizer = torch.optim.SGD(whole.encoder.parameters(), lr=0.1)
    for number in range(TRAINING_STEPS):
        optimizer.zero_grad()
        for part in range(PARTS):
            batch = local_batch(number * PARTS + part, rank)
            zoo.cached_backward(whole.loss_fn, whole.encoder, (batch.z1, batch.z2), chunk_size=CHUNK)
        optimizer.step()
    return {
        "parameters": [parameter.full_tensor().detach() for parameter in whole.encoder.parameters()],
        "gradient of temperature": whole.loss_fn.temperature.grad,
        "inside": message(lambda: fully_shard(Enclosing(), mesh=mesh)(batch.z1, batch.z2)),
        "too few": message(lambda: zoo.cached_loss(whole.loss_fn, whole.encoder, 2 * [batch.z1[: 3 * rank + 1]], chunk_size=1)),
    }


def count_of_chunks() -> int:
    """How often an encoder is called that communicates in training, where processes have batches of other sizes."""
    model, calls = encoder(nn.SyncBatchNorm(WIDTH)).eval(), []
    model.register_forward_hook(lambda module, given, output: calls.append(len(output)))
    batch = local_batch(0, dist.get_rank())
    zoo.cached_backward(zoo.get_loss("dcl"), model, (batch.z1, batch.z2), chunk_size=CHUNK)
    return len(calls)


class Enclosing(nn.Module):
    """Everything in one module, but for parameters of the loss, which FSDP does not shard."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return zoo.cached_backward(zoo.functional.ntxent, self.encoder, (z1, z2), chunk_size=CHUNK)


def message(call: Callable[[], object]) -> str:
    """What a call says that fails."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "nothing"


def work(rank: int, folder: Path, device: str) -> None:
    """What each process does."""
    begin(rank, len(SIZES), folder, device)
    found: FOUND = {str(configuration): run_cached(configuration, rank) for configuration in CONFIGURATIONS}
    found["running"] = run_with_running_buffer(rank)
    for wrapping in WRAPPINGS:
        for option, options in OPTIONS.items():
            if (wrapping.__name__, option) in TRAINED:
                found[f"{wrapping.__name__}, {option}"] = run_wrapped(wrapping, options, rank)
    found["calls"] = count_of_chunks()
    for wrapping, option in REFUSED:
        found[wrapping.__name__] = message(partial(run_wrapped, wrapping, OPTIONS[option], rank))
    if fully_shard is not None:
        found["sharded"] = run_sharded(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, device: str) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp("caching")
    return started(work, len(SIZES), folder, device=device)


@guaranteed("caching in processes")
def test_equals_one_process_without_caching(configuration: Configuration, found: list[FOUND]) -> None:
    loss_fn, model = configuration.learning(), encoder()
    for step in range(STEPS):
        batch = global_batch(step)
        expected = loss_fn(model(batch.z1), model(batch.z2), index=batch.index, labels=batch.labels)
        expected.backward()
        wanted = taken(model, loss_fn)
        for of_rank in found:
            assert_close(of_rank[str(configuration)]["losses"][step], expected, f"loss of step {step}", magnitude=1.0)
            for gradient, other in zip(of_rank[str(configuration)]["gradients"][step], wanted, strict=True):
                assert_close(gradient, other, f"gradient of step {step}", magnitude=1.0)
    for of_rank in found:
        assert of_rank[str(configuration)]["reductions"] == STEPS
        for name, tensor in loss_fn.state_dict().items():
            assert_close(of_rank[str(configuration)]["state"][name], tensor, name)


@pytest.fixture(scope="module")
def trained() -> list[Tensor]:
    """Parameters after the same steps in one process, without chunks."""
    whole = Whole()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    for number in range(TRAINING_STEPS):
        optimizer.zero_grad()
        for part in range(PARTS):
            batch = global_batch(number * PARTS + part)
            whole.loss_fn(whole.encoder(batch.z1), whole.encoder(batch.z2)).backward()
        optimizer.step()
    return [parameter.detach() for parameter in sorted(whole.parameters(), key=Tensor.numel)]


@pytest.mark.parametrize(("wrapping", "option"), TRAINED)
def test_wrappers_train_as_one_process(wrapping: str, option: str, found: list[FOUND], trained: list[Tensor]) -> None:
    first, second = (of_rank[f"{wrapping}, {option}"] for of_rank in found)
    for parameter, other, expected in zip(first["parameters"], second["parameters"], trained, strict=True):
        assert torch.equal(parameter, other)
        assert_close(parameter, expected, "parameter", magnitude=1.0)
    steps = TRAINING_STEPS + (option == "static graph")
    assert first["reductions"] == second["reductions"] == [steps] * len(first["reductions"])


@pytest.mark.skipif(fully_shard is None, reason="this version of PyTorch does not shard on CPUs")
def test_a_sharded_encoder_trains_as_one_process(found: list[FOUND]) -> None:
    whole = Whole()
    optimizer = torch.optim.SGD(whole.encoder.parameters(), lr=0.1)
    for number in range(TRAINING_STEPS):
        optimizer.zero_grad()
        for part in range(PARTS):
            batch = global_batch(number * PARTS + part)
            whole.loss_fn(whole.encoder(batch.z1), whole.encoder(batch.z2)).backward()
        optimizer.step()
    for of_rank in found:
        for parameter, expected in zip(of_rank["sharded"]["parameters"], whole.encoder.parameters(), strict=True):
            assert_close(parameter, expected, "parameter", magnitude=1.0)
        assert_close(of_rank["sharded"]["gradient of temperature"], whole.loss_fn.temperature.grad, "gradient", magnitude=1.0)
        assert "Shard the encoder itself" in of_rank["sharded"]["inside"]
        assert "batches hold [1, 4] samples and would make [1, 4] chunks" in of_rank["sharded"]["too few"]


@pytest.mark.parametrize(("wrapping", "option"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_what_a_wrapper_would_reduce_wrongly_is_refused(wrapping: Callable[..., Step], option: str, found: list[FOUND]) -> None:
    for of_rank in found:
        assert REFUSED[wrapping, option] in of_rank[wrapping.__name__]


def test_encoders_that_communicate_get_as_many_chunks_on_all_processes(found: list[FOUND]) -> None:
    passes, views = 2, 2
    assert [of_rank["calls"] for of_rank in found] == 2 * [passes * views * -(-max(SIZES) // CHUNK)]


def test_both_passes_start_from_the_buffers_of_the_first_process(found: list[FOUND]) -> None:
    for rank, of_rank in enumerate(found):
        features, batch, mean = of_rank["running"]["features"], local_batch(0, rank), torch.ones(WIDTH, dtype=torch.float64)
        passes = len(features) // 2
        assert passes == 2 * -(-SIZES[rank] // CHUNK)
        for first, second in zip(features[:passes], features[passes:], strict=True):
            assert torch.equal(first, second)
        for view in batch[:2]:
            ends = [SIZES[rank] * part // (passes // 2) for part in range(passes // 2 + 1)]
            for start, stop in pairwise(ends):
                mean.lerp_(view[start:stop].mean(0), 0.5)
        assert_close(of_rank["running"]["mean"], mean, "buffer")
