"""Ids: those kept from call to call are what they were made for; keys of no sample, and of samples outside of the batch."""

import math

import pytest
import torch
from cases import CONFIGURATIONS, Configuration, views
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad

import contrastive_zoo as zoo
from contrastive_zoo import pairwise
from contrastive_zoo.batch.samples import OUTSIDE, all_differ, regular_ids
from contrastive_zoo.samplers.memory import memory_softmax
from contrastive_zoo.state.saved import NOBODY


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


def test_constants_of_ordinary_calls_do_not_enter_a_mode() -> None:
    def sums() -> torch.Tensor:
        return pairwise.logsumexp(torch.ones(23, 8), scale=3.0, norm_bound=3.0)

    assert type(sums()) is torch.Tensor
    with FakeTensorMode():
        assert type(sums()) is not torch.Tensor


def test_regular_ids_of_a_transform_do_not_outlive_it() -> None:
    grad(lambda x: (x * regular_ids(1240, 1)).sum())(torch.ones(1240))
    assert regular_ids(1240, 1).numpy()[-1] == 1239


def test_regular_ids_are_made_once() -> None:
    assert regular_ids(1238, 2) is regular_ids(1238, 2)


def test_samples_that_come_twice_are_seen() -> None:
    assert all_differ(torch.tensor([5, 0, 3]), 6)
    assert not all_differ(torch.tensor([5, 0, 5]), 6)


EXTRA = [c for c in CONFIGURATIONS if "negatives" in c.card.uses]


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("configuration", EXTRA, ids=str)
def test_a_key_from_outside_of_the_batch_is_a_negative_of_all(configuration: Configuration, backend: str) -> None:
    """As a key without a position is."""
    batch, keys = views(), torch.randn(5, 6, dtype=torch.float64)
    outside = torch.arange(100, 105)
    for negatives, positions in ((keys, outside), (keys.expand(12, 5, 6), outside.expand(12, 5))):
        values = [
            configuration.make(backend=backend).double()(
                *batch[:2], index=batch.index, negatives=negatives, negatives_index=index
            )
            for index in (positions, None)
        ]
        assert torch.equal(*values)


@pytest.mark.parametrize("configuration", EXTRA, ids=str)
def test_a_place_that_holds_nothing_is_no_key(configuration: Configuration) -> None:
    """-1 stands for no sample: a queue leaves such places out, and as a position of a key it is refused."""
    batch, queue = views(), zoo.samplers.FeatureQueue(8)
    queue.push(torch.randn(3, 6), torch.tensor([50, 51, 52]))
    assert (queue.owner == NOBODY).sum() == 5
    assert len(queue.negatives) == len(queue.negatives_index) == 3
    loss_fn = configuration.make().double()
    with pytest.raises(IndexError, match=r"negatives_index holds -1, wanted positions.*Leave out empty places"):
        loss_fn(*batch[:2], index=batch.index, negatives=queue.embeddings.rows.double(), negatives_index=queue.owner)
    given = {"negatives": queue.negatives.double(), "negatives_index": queue.negatives_index}
    assert loss_fn(*batch[:2], index=batch.index, **given).isfinite()


def test_empty_places_count_for_nobody_in_searches() -> None:
    x, keys = torch.eye(3), torch.ones(4, 3)
    samples, owners = torch.arange(3), torch.tensor([NOBODY, 7, NOBODY, 0])
    log_sum, mean = memory_softmax(x, torch.tensor(1.0), samples, keys, owners)
    torch.testing.assert_close(log_sum, torch.tensor([1.0, math.log(2) + 1, math.log(2) + 1]))
    assert torch.equal(mean, torch.ones(3, 3))
    assert OUTSIDE != NOBODY
