"""Ids that are kept from call to call are what they were made for, whatever was on when they were made."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from contrastive_zoo.batch.samples import all_differ, regular_ids


def test_regular_ids_are_on_the_host_whatever_the_default_device() -> None:
    with torch.device("meta"):
        ids = regular_ids(1234, 2)
    assert ids.device.type == "cpu"
    assert torch.equal(regular_ids(1234, 2), torch.arange(1234) // 2)


def test_regular_ids_of_a_mode_do_not_outlive_it() -> None:
    with FakeTensorMode():
        regular_ids(1236, 1)
    assert type(regular_ids(1236, 1)) is torch.Tensor
    assert torch.equal(regular_ids(1236, 1), torch.arange(1236))


def test_regular_ids_are_made_once() -> None:
    assert regular_ids(1238, 2) is regular_ids(1238, 2)


def test_samples_that_come_twice_are_seen() -> None:
    assert all_differ(torch.tensor([5, 0, 3]), 6)
    assert not all_differ(torch.tensor([5, 0, 5]), 6)
