"""Batches with nothing to contrast: zero attached to the graph, one warning, no table changed; or an error if asked for."""

import pytest
import torch
from cases import BACKENDS, CONFIGURATIONS, Configuration, Views, gradients, guaranteed, same_state, snapshot, views
from tolerances import assert_close

import contrastive_zoo as zoo

every_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
BATCHES = {
    "one row": lambda: views(1, 4),
    "one sample": lambda: views(5, 4)._replace(index=torch.full((5,), 3)),
}
every_batch = pytest.mark.parametrize("make_batch", BATCHES.values(), ids=BATCHES)


@guaranteed("empty")
@every_batch
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_zero_with_one_warning(configuration: Configuration, make_batch: object, backend: str, training: bool) -> None:
    batch, loss_fn = make_batch(), configuration.make(backend=backend).train(training)
    views(6, 4, seed=3).call(loss_fn)
    before = snapshot(loss_fn)
    with pytest.warns(UserWarning, match=f"'{configuration.name}' has nothing to contrast: .* one sample") as caught:
        loss = batch.call(loss_fn)
    assert len(caught) == 1
    assert loss.shape == ()
    assert loss == 0
    assert loss.requires_grad
    for gradient in gradients(loss, batch):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert same_state(snapshot(loss_fn), before)


@every_batch
@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.card.per_sample], ids=str)
def test_zero_per_sample(configuration: Configuration, make_batch: object) -> None:
    batch = make_batch()
    with pytest.warns(UserWarning, match="nothing to contrast"):
        loss = batch.call(configuration.make(reduction="none"))
    assert torch.equal(loss, torch.zeros(len(batch.index)).to(loss))


@every_configuration
@every_batch
def test_an_error_if_asked_for(configuration: Configuration, make_batch: object) -> None:
    loss_fn = configuration.make(on_empty="error")
    before = snapshot(loss_fn)
    with pytest.raises(ValueError, match=r"nothing to contrast: .* No table was changed. Drop such batches"):
        make_batch().call(loss_fn)
    assert same_state(snapshot(loss_fn), before)


@every_configuration
def test_two_samples_are_enough(configuration: Configuration) -> None:
    batch = views(2, 4)
    loss = batch.call(configuration.make())
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, batch))


@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if "negatives" in c.card.uses], ids=str)
def test_extra_keys_are_something_to_contrast_with(configuration: Configuration) -> None:
    batch, keys = views(1, 4), views(5, 4, seed=1).z1.detach()
    loss = configuration.make()(batch.z1, batch.z2, negatives=keys)
    assert loss != 0
    assert all(gradient.any() for gradient in gradients(loss, batch))


def test_anchors_without_negatives_drop_out() -> None:
    """Sample 2 owns all the keys: the mean is over the others, and it gets no gradient."""
    batch, keys = views(4, 3), views(5, 3, seed=1).z1.detach()
    arguments = {"temperature": 0.5, "symmetric": False, "in_batch": False, "reduction": "none"}
    owners = batch.index[2].repeat(5)
    loss = zoo.get_loss("infonce", **arguments)(*batch[:2], index=batch.index, negatives=keys, negatives_index=owners)
    others = torch.tensor([0, 1, 3])
    assert loss[2] == 0
    alone = zoo.get_loss("infonce", **arguments)(batch.z1[others], batch.z2[others], negatives=keys)
    assert_close(loss[others], alone * 4 / 3, "loss of the others")
    mean = zoo.get_loss("infonce", **{**arguments, "reduction": "mean"})
    value = mean(*batch[:2], index=batch.index, negatives=keys, negatives_index=owners)
    assert_close(value, alone.mean(), "mean over the others")
    assert not gradients(value, batch)[0][2].any()
    with pytest.warns(UserWarning, match="no anchor has both a positive and a negative"):
        value = mean(batch.z1[2:3], batch.z2[2:3], index=batch.index[2:3], negatives=keys, negatives_index=owners)
    assert value == 0


@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.card.stateful], ids=str)
def test_a_step_after_an_empty_batch_is_as_if_it_had_not_been(configuration: Configuration) -> None:
    first, second = configuration.make(), configuration.make()
    with pytest.warns(UserWarning, match="nothing to contrast"):
        BATCHES["one sample"]().call(first)
    batch = Views(*(leaf.detach() for leaf in views(6, 4)))
    assert torch.equal(batch.call(first), batch.call(second))
    assert same_state(snapshot(first), snapshot(second))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_what_learns_gets_a_gradient_of_zero(name: str) -> None:
    """Wrappers like DistributedDataParallel wait for the gradient of every parameter in every step."""
    loss_fn, batch = zoo.get_loss(name), views(1, 4, dtype=torch.float32)
    with pytest.warns(UserWarning, match="nothing to contrast"):
        batch.call(loss_fn).backward()
    for parameter in loss_fn.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
