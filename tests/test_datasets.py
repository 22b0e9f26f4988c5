"""The dataset that says which sample it returns."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

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
    with pytest.raises(IndexError):
        IndexedDataset("abc")[3]
