"""SigLIP: its learned scale and bias, the largest scale, and that a mean and single values belong together."""

import math

import pytest
import torch
from cases import BACKENDS, gradients, views
from tolerances import assert_close
from torch import Tensor

import contrastive_zoo as zoo

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def learned(loss_fn: zoo.Loss) -> tuple[Tensor, Tensor]:
    return loss_fn.objective.logit_scale, loss_fn.objective.logit_bias


def test_scale_and_bias_are_parameters_of_the_loss() -> None:
    loss_fn = zoo.get_loss("siglip", init_scale=7, init_bias=-3)
    scale, bias = learned(loss_fn)
    assert [id(p) for p in loss_fn.parameters()] == [id(scale), id(bias)]
    assert set(loss_fn.state_dict()) == {"objective.logit_scale", "objective.logit_bias"}
    assert float(scale.detach().exp()) == pytest.approx(7)
    assert float(bias.detach()) == -3


@every_backend
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_of_scale_and_bias(backend: str, reduction: str) -> None:
    """Against finite differences."""
    batch = views()
    loss_fn = zoo.get_loss("siglip", init_scale=5, init_bias=-2, backend=backend, reduction=reduction).double()
    found = torch.autograd.grad(batch.call(loss_fn).sum(), learned(loss_fn))

    def moved(parameter: Tensor, step: float) -> float:
        with torch.no_grad():
            parameter += step
            value = float(batch.call(loss_fn).sum())
            parameter -= step
        return value

    for parameter, gradient in zip(learned(loss_fn), found, strict=True):
        slope = (moved(parameter, 1e-5) - moved(parameter, -1e-5)) / 2e-5
        assert float(gradient) == pytest.approx(slope, rel=1e-7)


@every_backend
def test_it_learns_to_tell_pairs_apart(backend: str) -> None:
    batch = views()
    loss_fn = zoo.get_loss("siglip", backend=backend).double()
    optimiser = torch.optim.Adam(loss_fn.parameters(), lr=0.3)
    losses = []
    for _ in range(30):
        losses.append(batch.call(loss_fn))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("beyond", [0.0, 0.5])
def test_the_scale_stays_at_its_maximum_and_can_come_back(beyond: float) -> None:
    """Views that agree want a larger scale, which is not to be had; views that disagree want a smaller one."""
    z, loss_fn = torch.eye(6, dtype=torch.float64), zoo.get_loss("siglip", init_scale=20, max_scale=20, init_bias=-1).double()
    at_maximum = [loss_fn(z, z2) for z2 in (z, -z)]
    with torch.no_grad():
        learned(loss_fn)[0].add_(beyond)
    agree, disagree = loss_fn(z, z), loss_fn(z, -z)
    assert_close(torch.stack([agree, disagree]), torch.stack(at_maximum), "loss", dtype=torch.float32)
    assert torch.autograd.grad(agree, learned(loss_fn)[0])[0] == 0
    assert torch.autograd.grad(disagree, learned(loss_fn)[0])[0] > 0
    with torch.no_grad():
        learned(loss_fn)[0].fill_(math.log(19))
    assert torch.autograd.grad(loss_fn(z, z), learned(loss_fn)[0])[0] < 0


def test_one_value_per_sample_is_a_row_against_all_of_the_other_view() -> None:
    batch = views(4, 3)
    loss_fn = zoo.get_loss("siglip", init_scale=3, init_bias=-1, reduction="none").double()
    x, y = (torch.nn.functional.normalize(z.detach(), dim=1) for z in batch[:2])
    scale, bias = learned(loss_fn)
    logits = scale.exp() * x @ y.T + bias
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1
    assert_close(batch.call(loss_fn), -torch.nn.functional.logsigmoid(signs * logits).sum(1), "loss")


@every_backend
def test_a_large_scale_is_stable_in_float32(backend: str) -> None:
    batch = views(dtype=torch.float32)
    opposite = batch._replace(z2=(-batch.z1.detach()).requires_grad_())
    loss_fn = zoo.get_loss("siglip", init_scale=1000, max_scale=1e4, init_bias=300, backend=backend)
    loss = opposite.call(loss_fn)
    x = torch.nn.functional.normalize(batch.z1.detach().double(), dim=1)
    logits = 1000 * x @ -x.T + 300
    expected = -torch.nn.functional.logsigmoid((2 * torch.eye(12) - 1) * logits).sum(1).mean()
    assert_close(loss, expected, "loss", logit=1000.0)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, opposite))


@pytest.mark.parametrize(
    ("message", "params"),
    [
        ("init_scale must be at most max_scale = 100.0, got 101", {"init_scale": 101}),
        (r"init_scale must be a finite number in \(0, inf\), got 0", {"init_scale": 0}),
        (r"init_bias must be a finite number .*got inf", {"init_bias": math.inf}),
        (r"max_scale must be a finite number in \(0, inf\), got -1", {"max_scale": -1}),
    ],
)
def test_bad_parameters(message: str, params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.get_loss("siglip", **params)
