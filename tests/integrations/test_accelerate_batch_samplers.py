"""Batch samplers in Accelerate on two processes: the loader left alone, and the loader prepared with split batches."""

import os
import socket
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from integrations.blocks import run_block
from torch.utils.data import DataLoader

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler

SIZE, BATCH = 40, 4
NAMES = ("shuffle", "combinations", "ordered")


def make(name: str = "shuffle", **params: Any) -> BatchSampler:
    sampler = zoo.get_batch_sampler(name, num_samples=params.pop("num_samples", SIZE), batch_size=BATCH, **params)
    z1, z2 = torch.randn(2, sampler.num_samples, 4, generator=torch.Generator().manual_seed(0))
    sampler.refresh(z1, z2, torch.arange(sampler.num_samples))
    return sampler


def loader_of(sampler: BatchSampler) -> DataLoader[Any]:
    return DataLoader(torch.arange(sampler.num_samples), batch_sampler=sampler)


def read(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def accelerator(**config: Any) -> Accelerator:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**config))


def message(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()}"
    except ValueError as error:
        return str(error)


def left_alone(name: str, folder: str) -> dict[str, Any]:
    """Three epochs, and the same stopped in the second."""
    whole, interrupted, resumed = make(name), make(name), make(name)
    found: dict[str, Any] = {"epochs": [read(loader_of(whole)) for _ in range(3)]}
    first, second = accelerator(), accelerator()
    first.register_for_checkpointing(interrupted)
    second.register_for_checkpointing(resumed)
    read(loader_of(interrupted))
    found["seen"] = read(islice(loader_of(interrupted), 2))
    first.save_state(f"{folder}/{name}")
    first.wait_for_everyone()
    second.load_state(f"{folder}/{name}")
    found["rest"] = [read(loader_of(resumed)) for _ in range(2)]
    return found


def prepared(name: str, folder: str, **config: Any) -> dict[str, Any]:
    """The same with a prepared loader; the first batches are skipped unless the loader keeps its own state."""

    def start(sampler: BatchSampler) -> tuple[Accelerator, Any]:
        one = accelerator(split_batches=True, **config)
        one.register_for_checkpointing(sampler)
        return one, one.prepare(loader_of(sampler))

    _, loader = start(make(name, num_replicas=1))
    found: dict[str, Any] = {"epochs": [read(loader) for _ in range(3)], "length": len(loader)}
    one, loader = start(make(name, num_replicas=1))
    read(loader)
    found["seen"] = read(islice(loader, 2))
    place = f"{folder}/{name}{''.join(config)}"
    one.save_state(place)
    one.wait_for_everyone()
    two, loader = start(make(name, num_replicas=1))
    two.load_state(place)
    loader.set_epoch(1)
    stateful = "use_stateful_dataloader" in config
    found["rest"] = [read(loader if stateful else two.skip_first_batches(loader, 2))]
    loader.set_epoch(2)
    found["rest"].append(read(loader))
    return found


def refused() -> dict[str, str]:
    """What each way of preparing says that does not give a slice of each batch to every process."""

    def attempt(sampler: BatchSampler, **config: Any) -> str:
        loader = accelerator(**config).prepare(loader_of(sampler))
        return message(lambda: read(loader))

    return {
        "sliced twice": attempt(make()),
        "split twice": attempt(make(), split_batches=True),
        "sliced and dispatched": attempt(make(), split_batches=True, dispatch_batches=True),
        "whole batches": attempt(make(num_replicas=1)),
        "uneven": attempt(make(num_replicas=1), even_batches=False),
        "dispatched": attempt(make(num_replicas=1), dispatch_batches=True),
        "rest": attempt(make(num_replicas=1, num_samples=27, drop_last=False), split_batches=True),
        "dispatched rest": attempt(
            make(num_replicas=1, num_samples=26, drop_last=False), split_batches=True, dispatch_batches=True
        ),
    }


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    early = make()
    accelerator()
    found: dict[str, Any] = {"early": read(loader_of(early))}
    found["alone"] = {name: left_alone(name, folder) for name in NAMES}
    found["prepared"] = {name: prepared(name, folder) for name in NAMES}
    found["dispatched"] = {name: prepared(name, folder, dispatch_batches=True) for name in NAMES}
    found["stateful"] = {name: prepared(name, folder, use_stateful_dataloader=True) for name in NAMES}
    found["refused"] = refused()
    torch.save(found, f"{folder}/{rank}.pt")
    PartialState().destroy_process_group()


# torchdata calls a deprecated function of PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("accelerate")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(work, (port, str(folder)), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def together(found: list[dict[str, Any]], *keys: Any) -> list[list[int]]:
    """Global batches, from the slices of both processes."""
    parts = []
    for part in found:
        for key in keys:
            part = part[key]
        parts.append(part)
    assert all(len(one) == len(two) == BATCH // 2 for one, two in zip(*parts, strict=True))
    return [one + two for one, two in zip(*parts, strict=True)]


def epochs(name: str) -> list[list[list[int]]]:
    sampler = make(name)
    return [list(sampler) for _ in range(3)]


@pytest.mark.parametrize("how", ["alone", "prepared", "dispatched", "stateful"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_on_the_batches_of_one(found: list[dict[str, Any]], how: str, name: str) -> None:
    wanted = epochs(name)
    assert wanted[0] != wanted[1]
    assert [together(found, how, name, "epochs", epoch) for epoch in range(3)] == wanted
    assert all(process[how][name].get("length", len(wanted[0])) == len(wanted[0]) for process in found)


@pytest.mark.parametrize("how", ["alone", "prepared", "dispatched", "stateful"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_in_the_middle_of_an_epoch(found: list[dict[str, Any]], how: str, name: str) -> None:
    wanted = epochs(name)
    assert together(found, how, name, "seen") == wanted[1][:2]
    assert together(found, how, name, "rest", 0) == wanted[1][2:]
    assert together(found, how, name, "rest", 1) == wanted[2]


def test_a_sampler_made_before_the_accelerator(found: list[dict[str, Any]]) -> None:
    assert together(found, "early") == epochs("shuffle")[0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("sliced twice", "already shares each batch among 2 processes. Either leave the loader out of accelerator.prepare"),
        ("split twice", "already shares each batch among 2 processes"),
        ("sliced and dispatched", "already shares each batch among 2 processes"),
        ("whole batches", "gives whole batches to the processes in turn"),
        ("uneven", "gives whole batches to the processes in turn"),
        ("dispatched", "gives whole batches to the processes in turn"),
        ("rest", "drop_last=False leaves a smaller last batch"),
        ("dispatched rest", "drop_last=False leaves a smaller last batch"),
    ],
)
def test_other_ways_are_refused(found: list[dict[str, Any]], how: str, words: str) -> None:
    for process in found:
        assert words in process["refused"][how]


def test_the_documented_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator()
    encoder = torch.nn.Linear(2, 2)
    names = {"encoder": encoder, "optimizer": torch.optim.SGD(encoder.parameters()), "dataset": torch.arange(SIZE)}
    names |= {"sampler": make(), "DataLoader": DataLoader, "zoo": zoo}
    assert read(run_block("integrations/accelerate.md", "accelerator.load_state", names)["loader"]) == epochs("shuffle")[0]
    accelerator()
    loader = run_block("integrations/accelerate.md", "DataLoaderConfiguration", names)["loader"]
    assert read(loader) == list(zoo.get_batch_sampler("shuffle", num_samples=SIZE, batch_size=8))


def test_one_process_needs_nothing() -> None:
    one = accelerator()
    sampler = make(num_samples=26, drop_last=False)
    loader = one.prepare(loader_of(sampler))
    other = make(num_samples=26, drop_last=False)
    assert [read(loader) for _ in range(2)] == [list(other) for _ in range(2)]
    assert read(accelerator(dispatch_batches=True).prepare(loader_of(make()))) == epochs("shuffle")[0]
