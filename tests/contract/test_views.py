"""Any number of views in one tensor: every other view is a positive, two are what two arguments are."""

import pytest
import torch
from cases import BACKENDS, CONFIGURATIONS, DEFAULTS, NUM_SAMPLES, Configuration, outcome, views
from tolerances import assert_close
from torch import Tensor
from torch.autograd import gradcheck

import contrastive_zoo as zoo

TEMPERATURE = 0.2
MANY = [c for c in CONFIGURATIONS if "views" in c.card.uses and c.params.get("intra_view", True)]
many_views = pytest.mark.parametrize("configuration", MANY, ids=str)
BY_HAND = ["ntxent", "dcl", "sogclr"]


def stacked(count: int = 3, size: int = 6, width: int = 4, *, seed: int = 0) -> Tensor:
    """(V, B, D) features that want a gradient."""
    draws = torch.Generator().manual_seed(seed)
    common = torch.randn(size, width, generator=draws, dtype=torch.float64)
    return (common + torch.randn(count, size, width, generator=draws, dtype=torch.float64)).requires_grad_()


def call(configuration: Configuration, z: Tensor, **params: object) -> Tensor:
    index = torch.arange(z.shape[1])
    value: Tensor = configuration.make(**params).double()(z, index=index, labels=index // 2)
    return value


def by_hand(name: str, z: Tensor) -> Tensor:
    """(B, V) loss of each anchor, in loops."""
    unit = z / z.norm(dim=2, keepdim=True)
    count, size, _ = z.shape
    losses = []
    for i in range(size):
        for view in range(count):
            anchor = unit[view, i]
            positives = [anchor @ unit[other, i] / TEMPERATURE for other in range(count) if other != view]
            negatives = torch.stack(
                [anchor @ unit[other, j] / TEMPERATURE for j in range(size) if j != i for other in range(count)]
            )
            if name == "ntxent":
                terms = [torch.cat([p[None], negatives]).logsumexp(0) - p for p in positives]
            else:
                mean = negatives.exp().mean() if name == "sogclr" else negatives.exp().sum()
                terms = [mean.log() - p for p in positives]
            losses.append(torch.stack(terms).mean())
    return torch.stack(losses).view(size, count)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_two_views_in_one_tensor_are_two_arguments(configuration: Configuration) -> None:
    batch = views()
    z = torch.stack([batch.z1, batch.z2]).detach().requires_grad_()
    loss = configuration.make().double()(z, index=batch.index, labels=batch.labels)
    (gradient,) = torch.autograd.grad(loss, z)
    expected, *gradients = outcome(configuration, batch)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, torch.stack(gradients))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("name", BY_HAND)
def test_more_views_by_hand(name: str, count: int, backend: str) -> None:
    """A first step of sogclr is the logarithm of the batch's mean."""
    z = stacked(count)
    loss = call(Configuration(name, {"temperature": TEMPERATURE}), z, backend=backend)
    expected = by_hand(name, z).mean()
    assert_close(loss, expected, "loss", magnitude=1.0)
    for found, wanted in zip(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), strict=True):
        assert_close(found, wanted, "gradient", magnitude=1.0)


@many_views
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_three_views(configuration: Configuration, backend: str) -> None:
    if configuration.card.stateful:
        pytest.skip("value and gradient are different estimates")
    z = stacked()
    assert gradcheck(lambda z: call(configuration, z, backend=backend), z)


@many_views
def test_the_order_of_views_does_not_matter(configuration: Configuration) -> None:
    z = stacked(4)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(call(configuration, z[order]), call(configuration, z), "loss", magnitude=1.0)


@many_views
def test_repeating_a_reduction_with_more_views(configuration: Configuration) -> None:
    if not configuration.card.per_sample:
        pytest.skip("no value per sample")
    z = stacked(3)
    none = call(configuration, z, reduction="none")
    assert none.shape == z.shape[1:2]
    assert_close(none.mean(), call(configuration, z), "mean of none", magnitude=1.0)


@pytest.mark.parametrize("configuration", DEFAULTS, ids=str)
def test_others_refuse_more_than_two_views(configuration: Configuration) -> None:
    if "views" in configuration.card.uses:
        assert call(configuration, stacked(3)).isfinite()
    else:
        with pytest.raises(ValueError, match=rf"'{configuration.name}' takes two views, z1 holds 3"):
            call(configuration, stacked(3))


def test_two_modalities_refuse_a_third() -> None:
    loss_fn = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES, intra_view=False).double()
    with pytest.raises(ValueError, match="intra_view=False contrasts two modalities, z1 holds 3"):
        loss_fn(stacked(3), index=torch.arange(6))
    assert not loss_fn.table()["visited"].any()
