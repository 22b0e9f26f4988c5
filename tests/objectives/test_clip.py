"""The learned scale of CLIP: the plain formula and open_clip, its gradient, its limits, how it is trained and saved."""

import math

import pytest
import torch
from cases import BACKENDS, Views, gradients, snapshot, views
from tolerances import assert_close
from torch import Tensor, nn

import contrastive_zoo as zoo
from contrastive_zoo import Loss


def clip(backend: str = "auto", **params: float) -> Loss:
    return zoo.get_loss("clip", backend=backend, **params).double()


def set_scale(loss_fn: Loss, scale: float) -> None:
    with torch.no_grad():
        loss_fn.logit_scale.fill_(math.log(scale))


def plain(batch: Views, logit_scale: Tensor) -> Tensor:
    """Radford et al., 2021, figure 3."""
    a, b = (nn.functional.normalize(z, dim=1) for z in batch[:2])
    logits, positives = logit_scale.exp() * a @ b.T, torch.arange(len(a))
    return (nn.functional.cross_entropy(logits, positives) + nn.functional.cross_entropy(logits.T, positives)) / 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_equals_the_plain_formula(scale: float, backend: str) -> None:
    batch, loss_fn = views(13, 5), clip(backend)
    set_scale(loss_fn, scale)
    reference = loss_fn.logit_scale.detach().clone().requires_grad_()
    loss, expected = batch.call(loss_fn), plain(batch, reference)
    assert_close(loss, expected, "loss", logit=scale)
    found = torch.autograd.grad(loss, (*batch[:2], loss_fn.logit_scale))
    wanted = torch.autograd.grad(expected, (*batch[:2], reference))
    for name, gradient, other in zip(("z1", "z2", "logit_scale"), found, wanted, strict=True):
        assert_close(gradient, other, f"gradient of {name}", logit=scale, magnitude=max(1.0, scale / 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_open_clip(backend: str) -> None:
    open_clip = pytest.importorskip("open_clip.loss", reason="open_clip is not installed")
    batch, loss_fn = views(13, 5), clip(backend, init_scale=10.0)
    unit = [nn.functional.normalize(z, dim=1) for z in batch[:2]]
    logit_scale = loss_fn.logit_scale.detach().clone().requires_grad_()
    expected = open_clip.ClipLoss()(*unit, logit_scale.exp())
    loss = batch.call(loss_fn)
    assert_close(loss, expected, "loss")
    wanted = torch.autograd.grad(expected, (*batch[:2], logit_scale))
    for gradient, other in zip(torch.autograd.grad(loss, (*batch[:2], loss_fn.logit_scale)), wanted, strict=True):
        assert_close(gradient, other, "gradient")


@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_differences_of_the_scale(backend: str) -> None:
    batch, loss_fn = views(6, 4), clip(backend)

    def value(logit_scale: float) -> float:
        with torch.no_grad():
            loss_fn.logit_scale.fill_(logit_scale)
            return float(batch.call(loss_fn))

    slope = (value(2.0 + 1e-5) - value(2.0 - 1e-5)) / 2e-5
    value(2.0)
    batch.call(loss_fn).backward()
    assert float(loss_fn.logit_scale.grad) == pytest.approx(slope, rel=1e-7)


def test_the_parameter_is_within_reach() -> None:
    loss_fn = zoo.get_loss("clip", init_scale=20.0)
    assert list(loss_fn.parameters()) == [loss_fn.logit_scale]
    assert isinstance(loss_fn.logit_scale, nn.Parameter)
    assert float(loss_fn.logit_scale.detach()) == pytest.approx(math.log(20))
    assert float(zoo.get_loss("clip").logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    assert not hasattr(zoo.get_loss("ntxent"), "logit_scale")


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_it_is_learned_and_saved(optimiser: type[torch.optim.Optimizer]) -> None:
    loss_fn = zoo.get_loss("clip")
    before, steps = float(loss_fn.logit_scale.detach()), optimiser(loss_fn.parameters(), lr=0.01)
    for seed in range(3):
        steps.zero_grad()
        views(seed=seed, dtype=torch.float32).call(loss_fn).backward()
        steps.step()
    after = float(loss_fn.logit_scale.detach())
    assert after != before
    other = zoo.get_loss("clip")
    other.load_state_dict(loss_fn.state_dict())
    assert float(other.logit_scale.detach()) == after


@pytest.mark.parametrize(("beyond", "limit"), [(1000.0, 30.0), (0.01, 1.0)], ids=["above", "below"])
def test_the_scale_stays_within_its_interval(beyond: float, limit: float) -> None:
    """The parameter is left alone, and its gradient vanishes exactly where a step would lead further out."""
    batch, loss_fn, at_limit = views(), clip(max_scale=30.0), clip(max_scale=30.0)
    set_scale(loss_fn, beyond)
    set_scale(at_limit, limit)
    before = snapshot(loss_fn)
    losses = batch.call(loss_fn), batch.call(at_limit)
    assert_close(losses[0], losses[1], "loss", dtype=torch.float32)
    assert torch.equal(loss_fn.logit_scale, before["objective.logit_scale"])
    (found,) = torch.autograd.grad(losses[0], loss_fn.logit_scale)
    unlimited = clip(max_scale=1e4)
    set_scale(unlimited, limit)
    (slope,) = torch.autograd.grad(batch.call(unlimited), unlimited.logit_scale)
    inwards = slope > 0 if beyond > limit else slope < 0
    assert_close(found, slope if inwards else torch.zeros_like(slope), "gradient", dtype=torch.float32)


def test_in_half_precision_only_the_parameter_is_rounded() -> None:
    batch, loss_fn = views(dtype=torch.float32), zoo.get_loss("clip").bfloat16()
    expected = zoo.get_loss("clip", init_scale=float(loss_fn.logit_scale.detach().float().exp()))
    assert_close(batch.call(loss_fn), batch.call(expected), "loss")


def test_extra_keys_are_for_the_first_modality() -> None:
    batch, keys = views(), torch.randn(5, 6, dtype=torch.float64)
    loss_fn = clip(init_scale=10.0)
    temperature = float((-loss_fn.logit_scale.detach()).exp())
    expected = zoo.get_loss("infonce", temperature=temperature)(*batch[:2], negatives=keys)
    loss = loss_fn(*batch[:2], negatives=keys)
    assert_close(loss, expected, "loss")
    for gradient, wanted in zip(gradients(loss, batch), gradients(expected, batch), strict=True):
        assert_close(gradient, wanted, "gradient")
