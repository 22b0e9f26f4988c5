"""Batch samplers: partitions, epochs, seeds, slices of processes, resuming, loaders with workers."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler, Partition

NAMES = zoo.list_batch_samplers()
PARTITIONS = [name for name in NAMES if "drop_last" in zoo.describe_batch_sampler(name).parameters]
every_name = pytest.mark.parametrize("name", NAMES)
in_batches = pytest.mark.parametrize("name", PARTITIONS)
SIZE = 22


def features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, SIZE, 4, generator=generator)
    return z1, z2, torch.randperm(SIZE, generator=generator)


def make(name: str, *, refreshed: bool = True, **params: Any) -> BatchSampler:
    """A sampler of 22 samples in batches of 4, the last of 2 where the method allows it, with features if it needs them."""
    if name != "full":
        params = {"batch_size": 4, **params}
    if name in PARTITIONS:
        params = {"drop_last": False, **params}
    sampler = zoo.get_batch_sampler(name, **{"num_samples": SIZE, **params})
    if refreshed and sampler.num_samples == SIZE:
        sampler.refresh(*features())
    return sampler


def test_verbs() -> None:
    assert {"shuffle", "fixed", "full", "combinations", "ordered", "spectral", "bisection"} <= set(NAMES)
    assert set(PARTITIONS) == {"shuffle", "fixed", "spectral", "bisection"}
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
def test_every_sampler_is_on_the_page(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "batches.md").read_text()
    assert f"| `{name}` |" in page


@pytest.mark.parametrize("name", [*PARTITIONS, "full"])
def test_an_epoch_of_a_partition_holds_every_sample_once(name: str) -> None:
    sampler = make(name)
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(chain.from_iterable(batches)) == list(range(SIZE))


@every_name
def test_batches_are_lists_of_distinct_positions(name: str) -> None:
    for batch in make(name):
        assert all(isinstance(position, int) and 0 <= position < SIZE for position in batch)
        assert len(set(batch)) == len(batch)


@every_name
@pytest.mark.parametrize("refreshed", [False, True])
def test_only_combinations_may_repeat_a_sample_in_an_epoch(name: str, refreshed: bool) -> None:
    sampler = make(name, refreshed=refreshed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert name == "combinations" or len(set(chain.from_iterable(batches))) == sum(map(len, batches))


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
    next(iter(sampler))
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    assert list(sampler) == epochs[2]


@every_name
def test_a_pass_that_is_broken_off_costs_an_epoch_number_and_no_more(name: str) -> None:
    sampler, other = make(name), make(name)
    epochs = [list(other) for _ in range(2)]
    next(iter(sampler))
    iter(sampler)  # nothing is asked of this one
    assert list(sampler) == epochs[1]


@every_name
@pytest.mark.parametrize("replicas", [2, 4])
def test_slices_of_processes_make_up_the_global_batches(name: str, replicas: int) -> None:
    last = {"drop_last": True} if name in PARTITIONS and replicas == 4 else {}
    slices = [list(make(name, num_replicas=replicas, rank=rank, **last)) for rank in range(replicas)]
    for number, batch in enumerate(make(name, **last)):
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
    loaded, wanted = torch.load(tmp_path / "state.pt", weights_only=True), sampler.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[k]) if isinstance(v, torch.Tensor) else v == wanted[k] for k, v in loaded.items())


@every_name
def test_state_is_of_one_size(name: str) -> None:
    with pytest.raises(ValueError, match="num_samples of the state is 20, of this sampler 22"):
        make(name).load_state_dict(make(name, num_samples=20, **({} if name == "full" else {"batch_size": 4})).state_dict())


@every_name
def test_a_run_can_be_resumed_on_another_number_of_processes(name: str) -> None:
    whole, interrupted = make(name), make(name)
    epoch = list(whole)
    next(iter(interrupted))
    slices = []
    for rank in range(2):
        sampler = make(name, refreshed=False, num_replicas=2, rank=rank)
        sampler.load_state_dict(interrupted.state_dict())
        slices.append(list(sampler))
    assert [first + second for first, second in zip(*slices, strict=True)] == epoch[1:]


def test_resuming_while_a_worker_fetches_ahead() -> None:
    """The loader has asked for all 8 batches when training has seen 3: only the trainer can say where it is."""

    def loader(sampler: BatchSampler) -> DataLoader[int]:
        context = {"num_workers": 1, "multiprocessing_context": "spawn", "prefetch_factor": 8, "persistent_workers": True}
        return DataLoader(list(range(64)), batch_sampler=sampler, collate_fn=list, **context)

    whole, sampler, resumed = (zoo.get_batch_sampler("shuffle", num_samples=64, batch_size=8, seed=5) for _ in range(3))
    epochs = [list(whole) for _ in range(3)]
    batches = loader(sampler)
    assert list(batches) == epochs[0]
    assert list(islice(batches, 3)) == epochs[1][:3]
    state = sampler.state_dict()
    assert (state["epoch"], state["batches_seen"]) != (1, 3)
    resumed.load_state_dict(sampler.state_dict(batches_seen=3))
    resumed.set_epoch(1)  # as trainers do at the start of each epoch
    batches = loader(resumed)
    assert list(batches) == epochs[1][3:]
    assert list(batches) == epochs[2]


def test_batches_seen_are_counted_within_an_epoch() -> None:
    with pytest.raises(ValueError, match="batches_seen must be at most the number of batches in an epoch = 6, got 7"):
        make("shuffle").state_dict(batches_seen=7)
    with pytest.raises(ValueError, match="batches_seen must be at least 0"):
        make("shuffle").state_dict(batches_seen=-1)


def test_no_process_may_be_left_without_samples() -> None:
    with pytest.raises(ValueError, match="drop_last=False leaves a last batch of 2 samples, fewer than num_replicas = 4"):
        make("shuffle", num_replicas=4)
    with pytest.raises(ValueError, match="batch_size is 3, fewer than num_replicas = 4"):
        zoo.get_batch_sampler("full", num_samples=3, num_replicas=4)


@pytest.mark.parametrize(
    ("error", "message", "params"),
    [
        (ValueError, "batch_size must be at most num_samples = 4, got 9", {"num_samples": 4, "batch_size": 9}),
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
    class Backwards(Partition):
        def order(self) -> Any:
            return np.arange(self.num_samples)[::-1]

    assert list(zoo.get_batch_sampler("backwards", num_samples=4, batch_size=2)) == [[3, 2], [1, 0]]
    with pytest.raises(ValueError, match="batch sampler name 'full' is taken"):
        zoo.register_batch_sampler("full")(Backwards)

    @zoo.register_batch_sampler("nonsense")
    class Nonsense:
        def __init__(self, *, num_samples: int, batch_size: int) -> None: ...

    with pytest.raises(TypeError, match=r"no contrastive_zoo.batch_samplers.BatchSampler"):
        zoo.get_batch_sampler("nonsense", num_samples=4, batch_size=2)
