"""The dataset that says which sample it returns."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

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
