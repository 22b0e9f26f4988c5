"""Batch samplers: partitions, epochs, seeds, slices of processes, resuming, loaders with workers."""

from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler

NAMES = zoo.list_batch_samplers()
every_name = pytest.mark.parametrize("name", NAMES)
in_batches = pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])


def make(name: str, **params: Any) -> BatchSampler:
    size = {} if name == "full" else {"batch_size": params.pop("batch_size", 4), "drop_last": params.pop("drop_last", False)}
    return zoo.get_batch_sampler(name, num_samples=params.pop("num_samples", 22), **size, **params)


def test_verbs() -> None:
    assert {"shuffle", "fixed", "full"} <= set(NAMES)
    for name in NAMES:
        assert zoo.describe_batch_sampler(name).name == name
        assert isinstance(make(name), BatchSampler)
    with pytest.raises(ValueError, match=r"unknown batch sampler 'shufle'. Did you mean 'shuffle'"):
        zoo.get_batch_sampler("shufle", num_samples=4, batch_size=2)
    with pytest.raises(TypeError, match=r"batch sampler 'shuffle' has no parameter 'batchsize'. Did you mean 'batch_size'"):
        zoo.get_batch_sampler("shuffle", num_samples=4, batchsize=2)
    with pytest.raises(TypeError, match="batch_size"):
        zoo.get_batch_sampler("shuffle", num_samples=4)


@every_name
def test_an_epoch_holds_every_sample_once(name: str) -> None:
    sampler = make(name)
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(chain.from_iterable(batches)) == list(range(22))
        assert all(isinstance(position, int) for batch in batches for position in batch)


@in_batches
@pytest.mark.parametrize(
    ("num_samples", "drop_last", "sizes"), [(22, True, [4] * 5), (22, False, [4] * 5 + [2]), (8, True, [4, 4])]
)
def test_sizes_of_batches(name: str, num_samples: int, drop_last: bool, sizes: list[int]) -> None:
    sampler = make(name, num_samples=num_samples, drop_last=drop_last)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


def test_full_is_one_batch() -> None:
    assert list(make("full")) == [list(range(22))]
    with pytest.raises(ValueError, match=r"batch_size of the full batch is num_samples = 22, got 4. Leave it out"):
        zoo.get_batch_sampler("full", num_samples=22, batch_size=4)


def test_shuffle_changes_with_epoch_and_seed_and_fixed_with_seed_only() -> None:
    shuffle, fixed = make("shuffle", seed=1), make("fixed", seed=1)
    first, second = list(shuffle), list(shuffle)
    assert first != second
    assert list(make("shuffle", seed=1)) == first
    assert list(make("shuffle", seed=2)) != first
    assert list(fixed) == list(fixed)
    assert list(make("fixed", seed=2)) != list(fixed)


@every_name
def test_set_epoch_starts_an_epoch_anew(name: str) -> None:
    sampler, other = make(name), make(name)
    epochs = [list(sampler) for _ in range(3)]
    other.set_epoch(2)
    assert list(other) == epochs[2]
    iterator = iter(sampler)
    next(iterator)
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


@every_name
@pytest.mark.parametrize("replicas", [2, 4])
def test_slices_of_processes_make_up_the_global_batches(name: str, replicas: int) -> None:
    slices = [list(make(name, num_replicas=replicas, rank=rank)) for rank in range(replicas)]
    for number, batch in enumerate(make(name)):
        parts = [part[number] for part in slices]
        assert list(chain.from_iterable(parts)) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@every_name
@pytest.mark.parametrize("replicas", [1, 2])
def test_resuming_in_the_middle_of_an_epoch(name: str, replicas: int) -> None:
    params = {"num_replicas": replicas, "rank": replicas - 1, "seed": 3}
    whole = make(name, **params)
    epochs = [list(whole) for _ in range(3)]
    for drawn in range(len(whole) + 1):
        interrupted, resumed = make(name, **params), make(name, **params)
        list(interrupted)
        iterator = iter(interrupted)
        assert list(islice(iterator, drawn)) == epochs[1][:drawn]
        resumed.load_state_dict(interrupted.state_dict())
        rest = list(resumed)
        # After the last batch of an epoch there is nothing left of it.
        assert rest == epochs[1][drawn:]
        assert list(resumed) == epochs[2]


@every_name
def test_state_can_be_saved(name: str, tmp_path: Any) -> None:
    sampler = make(name)
    next(iter(sampler))
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == sampler.state_dict()


@every_name
def test_refresh_takes_features(name: str) -> None:
    sampler = make(name)
    sampler.refresh(torch.randn(22, 4), torch.randn(22, 4), torch.arange(22))
    assert sorted(chain.from_iterable(sampler)) == list(range(22))


@pytest.mark.parametrize(
    ("error", "message", "params"),
    [
        (ValueError, "batch_size is 9 but there are 4 samples", {"num_samples": 4, "batch_size": 9}),
        (ValueError, "batch_size 4 is not divisible by num_replicas 3", {"num_replicas": 3}),
        (ValueError, "rank must be below num_replicas = 2, got 2", {"num_replicas": 2, "rank": 2}),
        (ValueError, "rank must be at least 0, got -1", {"rank": -1}),
        (ValueError, "num_samples must be at least 1, got 0", {"num_samples": 0}),
        (ValueError, "batch_size must be at least 1, got 0", {"batch_size": 0}),
        (TypeError, "batch_size must be a whole number, got 2.0", {"batch_size": 2.0}),
        (TypeError, "seed must be a whole number", {"seed": "one"}),
    ],
)
def test_mistakes(error: type[Exception], message: str, params: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        make("shuffle", **params)


def test_epoch_must_be_a_count() -> None:
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        make("shuffle").set_epoch(-1)


def test_full_batch_checks_its_rank() -> None:
    with pytest.raises(ValueError, match="rank must be below num_replicas"):
        make("full", num_replicas=2, rank=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gets_features_and_positions(workers: int) -> None:
    features = torch.arange(22.0)[:, None]
    dataset = zoo.IndexedDataset(TensorDataset(features, torch.arange(22) % 3))
    sampler, reference = make("shuffle"), make("shuffle")
    context = {"num_workers": workers, "multiprocessing_context": "spawn"} if workers else {}
    for batch, expected in zip(DataLoader(dataset, batch_sampler=sampler, **context), reference, strict=True):
        z, labels, index = batch
        assert index.tolist() == expected
        assert torch.equal(z, features[index])
        assert torch.equal(labels, index % 3)


@pytest.mark.usefixtures("_clean_registries")
def test_own_batch_samplers_can_be_registered() -> None:
    @zoo.register_batch_sampler("backwards", title="Backwards")
    class Backwards(BatchSampler):
        def batches(self) -> Any:
            return np.arange(self.num_samples)[::-1]

    assert list(zoo.get_batch_sampler("backwards", num_samples=4, batch_size=2)) == [[3, 2], [1, 0]]
    with pytest.raises(ValueError, match="batch sampler name 'full' is taken"):
        zoo.register_batch_sampler("full")(Backwards)

    @zoo.register_batch_sampler("nonsense")
    class Nonsense:
        def __init__(self, *, num_samples: int, batch_size: int) -> None: ...

    with pytest.raises(TypeError, match=r"no contrastive_zoo.batch_samplers.BatchSampler"):
        zoo.get_batch_sampler("nonsense", num_samples=4, batch_size=2)
