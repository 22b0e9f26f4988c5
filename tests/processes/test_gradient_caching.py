"""Gradient caching under `DistributedDataParallel`: the gradients of one process, reduced once per step."""

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import CONFIGURATIONS, Configuration, Views, guaranteed, views
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import contrastive_zoo as zoo

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


def work(rank: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    place = {"init_method": f"file://{folder}/group", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=len(SIZES), **place)
    found: FOUND = {str(configuration): run_cached(configuration, rank) for configuration in CONFIGURATIONS}
    found["running"] = run_with_running_buffer(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp("caching")
    mp.spawn(work, args=(folder,), nprocs=len(SIZES))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]


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
