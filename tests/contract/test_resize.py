"""A loss whose dataset grows: as if it had been made for the larger dataset."""

import pytest
import torch
from cases import CONFIGURATIONS, NUM_SAMPLES, Configuration, Views, same_state, snapshot, views

import contrastive_zoo as zoo

STATEFUL = [c for c in CONFIGURATIONS if c.card.stateful]
LARGER = NUM_SAMPLES + 25


def of_new_samples(batch: Views) -> Views:
    return batch._replace(index=batch.index + LARGER - NUM_SAMPLES)


@pytest.mark.parametrize("configuration", STATEFUL, ids=str)
def test_it_goes_on_as_a_loss_made_for_the_larger_dataset(configuration: Configuration) -> None:
    grown, larger = configuration.make(), configuration.make(num_samples=LARGER)
    for step in range(3):
        assert torch.equal(views(seed=step).call(grown), views(seed=step).call(larger))
    grown.resize(LARGER)
    assert grown.num_samples == LARGER
    assert same_state(snapshot(grown), snapshot(larger))
    for step in range(3, 6):
        batch = of_new_samples(views(seed=step))
        assert torch.equal(batch.call(grown), batch.call(larger))
    assert same_state(snapshot(grown), snapshot(larger))
    larger.load_state_dict(grown.state_dict())


@pytest.mark.parametrize("configuration", STATEFUL, ids=str)
def test_positions_of_new_samples_are_outside_before(configuration: Configuration) -> None:
    loss_fn, batch = configuration.make(), of_new_samples(views(seed=0))
    with pytest.raises(IndexError):
        batch.call(loss_fn)
    loss_fn.resize(LARGER)
    assert batch.call(loss_fn).isfinite()


def test_what_cannot_be_resized() -> None:
    loss_fn = zoo.get_loss("sogclr", num_samples=10)
    with pytest.raises(ValueError, match=r"num_samples must be at least 10, got 9"):
        loss_fn.resize(9)
    with pytest.raises(TypeError, match="'ntxent' keeps no state per sample"):
        zoo.get_loss("ntxent", num_samples=10).resize(20)
    with pytest.raises(AttributeError, match=r"loss_fn\.resize\(20\)"):
        loss_fn.num_samples = 20
    assert loss_fn.num_samples == 10


def test_a_sampler_alone() -> None:
    sampler = zoo.get_sampler("topk", num_samples=12, num_negatives=3)
    batch = views(seed=0)
    sampler.resize(NUM_SAMPLES)
    assert sampler(batch.z1, batch.z2, index=batch.index).weights.isfinite().all()
