"""Batch samplers in the StatefulDataLoader of torchdata, whose state contains that of the sampler."""

from itertools import islice
from typing import Any

import pytest
import torch
from integrations.blocks import run_block
from torchdata.stateful_dataloader import StatefulDataLoader

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler

# torchdata calls a deprecated function of PyTorch, and newer Pythons warn of forks.
pytestmark = [pytest.mark.filterwarnings("ignore:.*set_vital"), pytest.mark.filterwarnings("ignore:.*fork")]

SIZE, BATCH = 40, 8
X = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))


def make(name: str) -> BatchSampler:
    params = {"k": 5, "q": 4} if name == "ordered" else {}
    sampler = zoo.get_batch_sampler(name, num_samples=SIZE, batch_size=BATCH, **params)
    sampler.refresh(X, X.flip(1), torch.arange(SIZE))
    return sampler


def loader_of(sampler: BatchSampler, workers: int) -> Any:
    context = {"num_workers": 1, "multiprocessing_context": "fork"} if workers else {}
    return StatefulDataLoader(range(SIZE), batch_sampler=sampler, collate_fn=list, **context)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["shuffle", "ordered", "combinations"])
def test_a_run_is_resumed_after_any_batch(name: str, workers: int) -> None:
    sampler = make(name)
    epochs = [list(sampler) for _ in range(3)]
    for seen in (1, 3, len(epochs[1])):
        loader, resumed = loader_of(make(name), workers), loader_of(make(name), workers)
        assert list(loader) == epochs[0]
        assert list(islice(loader, seen)) == epochs[1][:seen]
        resumed.load_state_dict(loader.state_dict())
        rest = list(resumed)
        assert rest == epochs[1][seen:]
        assert list(resumed) == epochs[2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_is_resumed_between_epochs(workers: int) -> None:
    sampler = make("shuffle")
    epochs = [list(sampler) for _ in range(3)]
    loader, resumed = loader_of(make("shuffle"), workers), loader_of(make("shuffle"), workers)
    assert list(loader) == epochs[0]
    resumed.load_state_dict(loader.state_dict())
    assert [batch for _ in range(3) for batch in resumed][:10] == epochs[1] + epochs[2]


def test_the_documented_loader_keeps_its_place() -> None:
    sampler = make("shuffle")
    names = run_block("batches.md", "import StatefulDataLoader", {"dataset": torch.arange(SIZE), "sampler": sampler})
    assert [batch.tolist() for batch in names["loader"]] == list(make("shuffle"))
