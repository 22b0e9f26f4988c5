"""One process selects for all: each gives the features that it has, and a mistake is an error everywhere."""

from collections.abc import Callable
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


def message(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()}"
    except (ValueError, RuntimeError) as error:
        return str(error)


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    early = {name: zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=4) for name in ("shuffle", "combinations")}
    rest = zoo.get_batch_sampler("shuffle", num_samples=SIZE + 1, batch_size=4, drop_last=False)
    odd, full = zoo.get_batch_sampler("shuffle", num_samples=9, batch_size=3), zoo.get_batch_sampler("full", num_samples=1)
    wrong_rank = zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=4, rank=1 - rank)
    four = zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=4, num_replicas=4)
    alone = zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=4, num_replicas=1)
    hasty = zoo.get_batch_sampler("ordered", num_samples=SIZE, batch_size=4)
    hasty.refresh(*features(), torch.arange(SIZE))
    before = {name: list(sampler) for name, sampler in early.items()}
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    z1, z2 = features()
    own = torch.arange(rank, SIZE, 2)
    found: dict[str, Any] = {"before": before}
    found["after"] = {name: list(sampler) for name, sampler in early.items()}
    found["shares"] = [(sampler.num_replicas, sampler.rank) for sampler in (*early.values(), alone)]
    found["lengths"] = [len(sampler) for sampler in (*early.values(), rest, alone)]
    found["alone"] = list(alone)
    late = {"rest": rest, "odd": odd, "full": full, "wrong rank": wrong_rank, "four": four, "hasty": hasty}
    found["errors"] = {name: message(lambda s=sampler: next(iter(s))) for name, sampler in late.items()}
    found["made"] = message(lambda: zoo.get_batch_sampler("shuffle", num_samples=9, batch_size=3))
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


@pytest.mark.parametrize("name", ["shuffle", "combinations"])
def test_a_sampler_made_before_the_process_group_takes_its_share_afterwards(name: str, found: list[dict[str, Any]]) -> None:
    alone = zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=4)
    assert found[0]["before"][name] == found[1]["before"][name] == list(alone)
    slices = zip(found[0]["after"][name], found[1]["after"][name], strict=True)
    assert [first + second for first, second in slices] == list(alone)


def test_processes_know_their_place_unless_it_was_given(found: list[dict[str, Any]]) -> None:
    assert [process["shares"] for process in found] == [[(2, 0), (2, 0), (1, 0)], [(2, 1), (2, 1), (1, 0)]]
    assert found[0]["lengths"] == found[1]["lengths"] == [6, 6, 7, 6]
    whole = list(zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=4))
    assert found[0]["alone"] == found[1]["alone"] == whole


def test_what_does_not_go_with_the_process_group_is_found_when_a_pass_begins(found: list[dict[str, Any]]) -> None:
    for rank, process in enumerate(found):
        errors = process["errors"]
        assert "drop_last=False leaves a last batch of 1 samples, fewer than num_replicas = 2" in errors["rest"]
        assert errors["odd"] == process["made"] == "batch_size 3 is not divisible by num_replicas 2."
        assert "batch_size is 1, fewer than num_replicas = 2" in errors["full"]
        assert f"rank is {1 - rank} but the process group says {rank}" in errors["wrong rank"]
        assert "num_replicas is 4 but the process group has 2 processes. Pass rank too" in errors["four"]
        assert "refresh was called before the process group was initialised" in errors["hasty"]


def test_half_of_a_place_without_a_process_group() -> None:
    for given, message in (
        ({"rank": 1}, "rank is 1 but there is no process group. Leave rank out, or pass num_replicas too"),
        ({"num_replicas": 2}, "num_replicas is 2 but there is no process group. Pass rank too"),
    ):
        sampler = zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=4, **given)
        with pytest.raises(ValueError, match=message):
            next(iter(sampler))
    assert len(list(zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=4, rank=0))) == 6
