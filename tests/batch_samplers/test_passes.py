"""Several passes over one sampler, epochs that trainers set, states, copies: each pass keeps its own place."""

import copy
import inspect
import pickle
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler, ShuffledBatches

SIZE = 24
NAMES = zoo.list_batch_samplers()
# With more than one batch in an epoch.
every_name = pytest.mark.parametrize("name", [name for name in NAMES if name != "full"])


def features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z1, z2 = torch.randn(2, SIZE, 4, generator=torch.Generator().manual_seed(seed))
    return z1, z2, torch.arange(SIZE)


def make(name: str, **params: Any) -> BatchSampler:
    size = {} if name == "full" else {"batch_size": 4}
    sampler = zoo.get_batch_sampler(name, **{"num_samples": SIZE, **size, **params})
    sampler.refresh(*features())
    return sampler


def alike(first: dict[str, Any], second: dict[str, Any]) -> bool:
    same = [torch.equal(v, second[k]) if isinstance(v, torch.Tensor) else v == second[k] for k, v in first.items()]
    return all(same) and first.keys() == second.keys()


def validate_all(sampler: BatchSampler) -> None:
    list(sampler)


def validate_some(sampler: BatchSampler) -> None:
    next(iter(sampler))


def validate_as_lightning_does(sampler: BatchSampler) -> None:
    sampler.set_epoch(sampler.epoch)
    next(iter(sampler))


def validate_while_new_features_come(sampler: BatchSampler) -> None:
    sampler.refresh(*features(1))
    list(sampler)


VALIDATE = [validate_all, validate_some, validate_as_lightning_does, validate_while_new_features_come]


@every_name
@pytest.mark.parametrize("validate", VALIDATE)
def test_another_pass_changes_neither_order_nor_state(name: str, validate: Any) -> None:
    sampler, undisturbed = make(name), make(name)
    for epoch in range(2):
        batches, wanted = iter(sampler), iter(undisturbed)
        for number, batch in enumerate(wanted):
            assert next(batches) == batch
            assert sampler.epoch == epoch
            first, second = sampler.state_dict(), undisturbed.state_dict()
            assert first["batches_seen"] == second["batches_seen"] == number + 1
            assert first["epoch"] == epoch
            if "selected" in first:
                assert torch.equal(first["selected"], second["selected"])
            if number == 1:
                validate(sampler)
            if number == 1 and validate is validate_while_new_features_come:
                undisturbed.refresh(*features(1))
        assert next(batches, None) is None
        assert alike(sampler.state_dict(), undisturbed.state_dict())


@every_name
def test_two_passes_that_take_turns(name: str) -> None:
    sampler, other = make(name), make(name)
    epochs = [list(other) for _ in range(3)]
    first, second = iter(sampler), iter(sampler)
    for one, two in zip(first, second, strict=False):
        seen = sampler.state_dict()["batches_seen"]
        assert (one, two) == (epochs[0][seen - 1], epochs[1][seen - 1])
        assert sampler.state_dict()["epoch"] == 1
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]


@every_name
def test_state_is_that_of_training_again_when_a_pass_of_the_same_epoch_ends(name: str) -> None:
    sampler = make(name)
    training = iter(sampler)
    next(training)
    before = sampler.state_dict()
    sampler.set_epoch(0)
    validate_all(sampler)
    assert alike(sampler.state_dict(), before)
    resumed = make(name)
    resumed.load_state_dict(before)
    assert list(resumed) == list(training)


def test_which_of_two_passes_is_training_is_not_guessed() -> None:
    sampler = make("shuffle")
    training = iter(sampler)
    next(training)
    validate_all(sampler)
    with pytest.raises(
        RuntimeError, match=r"epoch 0 of this sampler is unfinished, and a pass of epoch 1 .* sampler of its own"
    ):
        sampler.state_dict()
    del training
    assert sampler.state_dict()["epoch"] == 2


@every_name
def test_a_sanity_check_leaves_the_loaded_place(name: str) -> None:
    whole, interrupted, resumed = make(name), make(name), make(name)
    epochs = [list(whole) for _ in range(3)]
    list(interrupted)
    assert list(islice(interrupted, 2)) == epochs[1][:2]
    state = interrupted.state_dict(batches_seen=2, epoch=1)
    resumed.load_state_dict(state)
    for _ in range(2):
        resumed.set_epoch(1)
        assert next(iter(resumed)) == epochs[1][2]
    resumed.set_epoch(1)
    assert list(resumed) == epochs[1][2:]
    assert list(resumed) == epochs[2]
    resumed.set_epoch(1)
    assert list(resumed) == epochs[1]


@every_name
def test_another_epoch_than_the_loaded_one_starts_with_its_first_batch(name: str) -> None:
    whole, resumed = make(name), make(name)
    epochs = [list(whole) for _ in range(3)]
    resumed.load_state_dict(make(name).state_dict(batches_seen=2, epoch=1))
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]


def test_a_trainer_that_counts_from_zero_is_reported() -> None:
    sampler = make("shuffle")
    sampler.load_state_dict(make("shuffle").state_dict(batches_seen=2, epoch=1))
    sampler.set_epoch(0)
    with pytest.warns(UserWarning, match="a pass of epoch 0 begins, so the loaded state of epoch 1 is not continued"):
        list(sampler)


@every_name
def test_an_epoch_that_is_set_after_workers_have_fetched(name: str) -> None:
    """Lightning makes the iterator of the first epoch before it sets the epoch."""
    whole, sampler = make(name), make(name)
    epochs = [list(whole) for _ in range(2)]
    batches = iter(sampler)
    first = next(batches)
    sampler.set_epoch(0)
    assert [first, next(batches)] == epochs[0][:2]
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batches_seen"]) == (0, 2)
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


def test_an_epoch_that_comes_too_late_is_reported() -> None:
    sampler = make("shuffle")
    batches = iter(sampler)
    next(batches)
    sampler.set_epoch(2)
    with pytest.warns(UserWarning, match=r"set_epoch\(2\) came after 1 batches of epoch 0 .* call sampler.load_state_dict"):
        next(batches)
    list(batches)


def test_an_iterator_that_is_made_anew_after_the_epoch_is_set() -> None:
    """Lightning makes two in an epoch whose loader it reloads."""
    sampler = make("shuffle")
    batches = iter(sampler)
    next(batches)
    sampler.set_epoch(2)
    batches = iter(sampler)
    wanted = make("shuffle")
    wanted.set_epoch(2)
    assert list(batches) == list(wanted)


@pytest.mark.parametrize("name", ["shuffle", "ordered"])
def test_loading_into_a_loader_with_workers(name: str) -> None:
    """The loader fetches in the epoch of the state before that is set again."""
    whole, sampler = make(name), make(name)
    epochs = [list(whole) for _ in range(3)]
    sampler.load_state_dict(make(name).state_dict(batches_seen=1, epoch=1))
    context = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    loader = DataLoader(list(range(SIZE)), batch_sampler=sampler, collate_fn=list, **context)
    batches = iter(loader)
    sampler.set_epoch(1)
    assert list(batches) == epochs[1][1:]
    sampler.set_epoch(2)
    assert list(loader) == epochs[2]


@every_name
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_copies_continue_where_the_sampler_is(name: str, copied: Any) -> None:
    sampler = make(name)
    batches = iter(sampler)
    next(batches)
    other = copied(sampler)
    assert alike(other.state_dict(), sampler.state_dict())
    list(batches)
    assert list(other) == list(sampler)
    assert alike(other.state_dict(), sampler.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_rebuilding_is_refused(name: str) -> None:
    sampler = make(name)
    with pytest.raises(TypeError, match=r"takes keyword arguments only.*Trainer\(use_distributed_sampler=False\)"):
        type(sampler)(range(3), batch_size=sampler.batch_size, drop_last=sampler.drop_last)
    assert not {"args", "params"} & set(inspect.signature(type(sampler)).parameters)


@every_name
def test_any_whole_number_will_do(name: str) -> None:
    given: dict[str, Any] = {"num_samples": np.int64(SIZE), "batch_size": torch.tensor(4), "seed": np.uint8(3)}
    shared = {"num_replicas": np.int32(2), "rank": torch.tensor(1)}
    known = zoo.describe_batch_sampler(name).parameters
    given |= {key: np.int64(3) for key in ("k", "q", "batches_per_epoch") if key in known}
    sampler, plain = make(name, **given, **shared), make(name, seed=3, **{k: 3 for k in given if k in ("k", "q")})
    assert type(sampler.state_dict()["batch_size"]) is int
    for own, batch in zip(sampler, plain, strict=False):
        assert own == batch[2:]


def test_flags_are_flags() -> None:
    with pytest.raises(TypeError, match="drop_last must be True or False, got 'no'"):
        ShuffledBatches(num_samples=4, batch_size=2, drop_last="no")
    assert ShuffledBatches(num_samples=5, batch_size=2, drop_last=np.bool_(False)).drop_last is False


def test_epoch_goes_with_batches_seen() -> None:
    with pytest.raises(ValueError, match=r"epoch is 3 but batches_seen is not given\. Pass both, or neither"):
        make("shuffle").state_dict(epoch=3)


def test_state_of_a_longer_epoch() -> None:
    state = make("combinations", batches_per_epoch=9).state_dict(batches_seen=8)
    with pytest.raises(ValueError, match="batches_seen must be at most the number of batches in an epoch = 6, got 8"):
        make("combinations").load_state_dict(state)


def test_state_of_another_sampler() -> None:
    with pytest.raises(ValueError, match=r"state lacks selected, coming\. Take the state of a OrderedBatches"):
        make("ordered").load_state_dict(make("shuffle").state_dict())
    with pytest.raises(ValueError, match=r"the state selects 8 samples, this sampler 16\. Make k and q equal"):
        make("ordered", k=3, q=2).load_state_dict(make("ordered", k=3, q=1).state_dict())
