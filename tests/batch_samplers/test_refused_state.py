"""A state that does not fit a batch sampler is refused by the name of its entry, and changes nothing."""

import copy
from itertools import islice
from typing import Any

import pytest
import torch

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers import BatchSampler

N, B = 24, 4
NAMES = zoo.list_batch_samplers()
CLUSTERING = ("spectral", "bisection")
# Another sampler whose state has the same entries and sizes as far as that is possible.
OTHERS = {name: [other for other in NAMES if other != name] for name in NAMES}
Kept = tuple[dict[str, Any], list[list[int]]]


def make(name: str, **params: Any) -> BatchSampler:
    if name in CLUSTERING:
        pytest.importorskip("sklearn")
    size = {} if name == "full" else {"batch_size": B}
    return zoo.get_batch_sampler(name, num_samples=N, **size, **params)


def used(name: str, seed: int, **params: Any) -> BatchSampler:
    """A sampler in the middle of its second epoch, or at its start if an epoch is one batch."""
    sampler = make(name, seed=seed, **params)
    if sampler.needs_features:
        draws = torch.Generator().manual_seed(seed)
        sampler.refresh(*torch.randn(2, N, 3, generator=draws), torch.arange(N))
    sampler.set_epoch(1)
    list(islice(sampler, len(sampler) // 2))
    return sampler


def kept(sampler: BatchSampler) -> Kept:
    """All that a sampler holds, and the batches that it would give next."""
    state = sampler.state_dict()
    return state, list(copy.deepcopy(sampler))


def same(first: Kept, second: Kept) -> bool:
    states = first[0], second[0]
    return (
        first[1] == second[1]
        and states[0].keys() == states[1].keys()
        and all(
            torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
            for name, value in states[0].items()
        )
    )


def broken_forms(name: str, value: Any) -> dict[str, Any]:
    if name == "sampler":
        return {"another": "RandomBatches", "nothing": None}
    if name in ("selected", "coming"):
        good = torch.arange(N) if value is None else value
        return {
            "a word": "x",
            "a list": good.tolist(),
            "floats": good.float(),
            "a matrix": good[None],
            "too few": good[:-1],
            "empty": good[:0],
            "twice the same": torch.zeros_like(good),
            "negative": good.clone().index_fill_(0, torch.tensor([0]), -1),
            "large": good.clone().index_fill_(0, torch.tensor([0]), N),
        }
    return {"a word": "x", "nothing": None, "a fraction": 1.5, "negative": -3, "large": 10**30, "a tensor": torch.arange(3)} | (
        {"beyond the epoch": 999} if name == "batches_seen" else {}
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_checked(name: str) -> None:
    state, sampler = used(name, 0).state_dict(), used(name, 7)
    before = kept(sampler)
    for entry, value in state.items():
        for form, broken in broken_forms(entry, value).items():
            with pytest.raises((TypeError, ValueError)) as caught:
                sampler.load_state_dict({**state, entry: broken})
            assert entry in str(caught.value), form
            assert same(before, kept(sampler)), f"{entry}: {form}"
        if entry != "sampler":
            with pytest.raises(ValueError, match=f"state lacks {entry}"):
                sampler.load_state_dict({key: value for key, value in state.items() if key != entry})
            assert same(before, kept(sampler)), entry
    sampler.load_state_dict(state)
    assert sampler.state_dict()["seed"] == 0


@pytest.mark.parametrize("state", [None, [1, 2], "epoch", 3], ids=str)
def test_what_is_no_state(state: Any) -> None:
    sampler = make("shuffle")
    with pytest.raises(TypeError, match=r"state must be a dictionary"):
        sampler.load_state_dict(state)


@pytest.mark.parametrize("name", NAMES)
def test_state_of_another_sampler(name: str) -> None:
    sampler = used(name, 7)
    before = kept(sampler)
    for other in OTHERS[name]:
        with pytest.raises(
            ValueError,
            match=f"sampler of the state is|state lacks selected, coming. Take the state of a {type(sampler).__name__}",
        ):
            sampler.load_state_dict(used(other, 0).state_dict())
        assert same(before, kept(sampler)), other


@pytest.mark.parametrize("name", NAMES)
def test_states_that_do_not_say_what_made_them_still_load(name: str) -> None:
    """As those of version 0.1."""
    state, first, second = used(name, 3).state_dict(), make(name), make(name)
    first.load_state_dict(state)
    second.load_state_dict({key: value for key, value in state.items() if key != "sampler"})
    assert list(second) == list(first)


@pytest.mark.parametrize(("saved", "loaded"), [({"k": 4, "q": 1}, {"k": 4, "q": 4}), ({"k": 6, "q": 2}, {"k": 2, "q": 1})])
def test_a_selection_of_another_size(saved: dict[str, int], loaded: dict[str, int]) -> None:
    state, sampler = used("ordered", 0, **saved).state_dict(batches_seen=0), used("ordered", 7, **loaded)
    before = kept(sampler)
    with pytest.raises(ValueError, match=r"selected: the state selects \d+ samples, this sampler \d+. Make k and q equal"):
        sampler.load_state_dict(state)
    assert same(before, kept(sampler))
    assert all(len(batch) == B for batch in sampler)


def test_a_loaded_selection_is_a_copy() -> None:
    state, sampler = used("ordered", 0).state_dict(), make("ordered")
    sampler.load_state_dict(state)
    expected = kept(sampler)
    state["selected"].fill_(0)
    state["coming"].fill_(0)
    assert same(expected, kept(sampler))
