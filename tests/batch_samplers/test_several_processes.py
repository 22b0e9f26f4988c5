"""One process selects for all: each gives the features that it has, and a mistake is an error everywhere."""

from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import contrastive_zoo as zoo

CHOOSE, SIZE = ("ordered", "spectral", "bisection"), 24


def features() -> tuple[torch.Tensor, torch.Tensor]:
    z1, z2 = torch.randn(2, SIZE, 4, generator=torch.Generator().manual_seed(0))
    return z1, z2


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    z1, z2 = features()
    own = torch.arange(rank, SIZE, 2)
    found: dict[str, Any] = {}
    for name in CHOOSE:
        sampler = zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=4)
        sampler.refresh(z1[own], z2[own], own)
        found[name] = list(sampler)
        # Differences of rounding between machines do not part the processes.
        sampler.refresh(z1 * (1 + rank), z2 + rank, torch.arange(SIZE))
        found[f"{name} again"] = list(sampler)
        try:
            sampler.refresh(z1[own[1:]], z2[own[1:]], own[1:])
        except ValueError as error:
            found[f"{name} error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(run, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CHOOSE)
def test_processes_get_slices_of_what_one_process_selects(name: str, found: list[dict[str, Any]]) -> None:
    alone = zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=4)
    alone.refresh(*features(), torch.arange(SIZE))
    assert [first + second for first, second in zip(found[0][name], found[1][name], strict=True)] == list(alone)


@pytest.mark.parametrize("name", CHOOSE)
def test_processes_agree_when_their_features_do_not(name: str, found: list[dict[str, Any]]) -> None:
    batches = [first + second for first, second in zip(found[0][f"{name} again"], found[1][f"{name} again"], strict=True)]
    samples = list(chain.from_iterable(batches))
    assert len(set(samples)) == len(samples)


@pytest.mark.parametrize("name", CHOOSE)
def test_a_mistake_is_an_error_on_all(name: str, found: list[dict[str, Any]]) -> None:
    for process in found:
        assert "index lacks 2 of 24 samples, first 0" in process[f"{name} error"]
