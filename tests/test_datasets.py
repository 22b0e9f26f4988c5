"""The dataset that says which sample it returns."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

import contrastive_zoo as zoo
from contrastive_zoo import IndexedDataset


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (("cat", 0), ("cat", 0, 1)),
        (["cat", 0], ("cat", 0, 1)),
        ({"image": "cat"}, {"image": "cat", "index": 1}),
        ("cat", ("cat", 1)),
        (7, (7, 1)),
    ],
)
def test_adds_the_position(item: object, expected: object) -> None:
    dataset = IndexedDataset(["something else", item])
    assert dataset[1] == expected
    assert dataset[-1] == expected
    assert len(dataset) == 2


def test_a_tensor_is_one_item() -> None:
    item, index = IndexedDataset(torch.eye(3))[2]
    assert torch.equal(item, torch.eye(3)[2])
    assert index == 2


def test_the_item_of_the_data_set_is_not_changed() -> None:
    inner = [{"image": "cat"}]
    IndexedDataset(inner)[0]
    assert inner == [{"image": "cat"}]


def test_positions_may_be_tensors() -> None:
    assert IndexedDataset("abc")[torch.tensor(2)] == ("c", 2)


def test_a_loader_stacks_the_positions() -> None:
    dataset = IndexedDataset(TensorDataset(torch.arange(5.0)))
    batches = list(DataLoader(dataset, batch_size=2))
    assert torch.cat([index for _, index in batches]).tolist() == [0, 1, 2, 3, 4]
    assert batches[0][1].dtype == torch.int64


def test_mistakes() -> None:
    with pytest.raises(TypeError, match=r"dataset must be map-style, .* got generator.*A stream has no positions"):
        IndexedDataset(item for item in "abc")
    with pytest.raises(ValueError, match='already returns a key "index"'):
        IndexedDataset([{"index": 3}])[0]


@pytest.mark.parametrize("position", [3, -4, 99, -7])
def test_positions_outside_of_the_dataset(position: int) -> None:
    with pytest.raises(IndexError, match=f"index {position} is out of range for a dataset of 3 samples"):
        IndexedDataset("abc")[position]


@pytest.mark.parametrize("position", [-1, -2, -3, np.int64(-1), torch.tensor(-3)])
def test_negative_positions_count_from_the_end(position: int) -> None:
    dataset = IndexedDataset("abc")
    assert dataset[position] == ("abc"[int(position)], int(position) % 3)


def test_it_is_a_sequence_and_a_dataset() -> None:
    dataset = IndexedDataset("abc")
    assert isinstance(dataset, Dataset)
    assert list(dataset) == [("a", 0), ("b", 1), ("c", 2)]
    part = torch.utils.data.Subset(dataset, [2, 0])
    assert list(part) == [("c", 2), ("a", 0)]


class Labelled(TensorDataset):
    """With what the datasets of torchvision have."""

    classes = ("cat", "dog")

    def __init__(self) -> None:
        super().__init__(torch.arange(4.0))
        self.targets = [0, 1, 1, 0]

    def __getitems__(self, positions: list[int]) -> list[object]:
        """How a loader fetches a batch at once: without positions, if the wrapper passed it on."""
        return [self[position] for position in positions]


@pytest.mark.parametrize("duplicate", [lambda x: x, copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_attributes_are_those_of_the_dataset(duplicate: Callable[[IndexedDataset], IndexedDataset]) -> None:
    dataset = duplicate(IndexedDataset(Labelled()))
    assert dataset.classes == ("cat", "dog")
    assert dataset.targets == [0, 1, 1, 0]
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = dataset.no_such_thing
    assert [index.tolist() for _, index in DataLoader(dataset, batch_size=2)] == [[0, 1], [2, 3]]


def splitmix64(number: int) -> int:
    """SplitMix64 of a 64-bit state, in Python's integers."""
    word = 2**64 - 1
    z = (number + 0x9E3779B97F4A7C15) & word
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & word
    z = (z ^ z >> 27) * 0x94D049BB133111EB & word
    return z ^ z >> 31


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.integers(1, 2**40))
def test_hashed_positions_are_splitmix64(ids: list[int], num_samples: int) -> None:
    found = zoo.hashed_index(torch.tensor(ids), num_samples)
    assert found.tolist() == [(splitmix64(number % 2**64) >> 1) % num_samples for number in ids]


@pytest.mark.parametrize("step", [1, 1024, 2**33 + 7])
def test_collisions_are_as_rare_as_stated(step: int) -> None:
    """Also of ids that lie apart regularly, as those of shards do."""
    ids, num_samples = step * torch.arange(200_000), 2_000_000
    _, counts = zoo.hashed_index(ids, num_samples).unique(return_counts=True)
    shared = float(counts[counts > 1].sum()) / len(ids)
    assert shared == pytest.approx(1 - math.exp(-0.1), rel=0.03)


def test_ids_are_checked() -> None:
    with pytest.raises(TypeError, match=r"^ids must hold integers"):
        zoo.hashed_index(torch.rand(3), 10)
    with pytest.raises(ValueError, match=r"^ids must have shape"):
        zoo.hashed_index(torch.zeros(2, 3, dtype=torch.int64), 10)
    with pytest.raises(ValueError, match="num_samples"):
        zoo.hashed_index(torch.arange(3), 0)
