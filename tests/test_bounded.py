"""Parameters within an interval: the value, and gradients that lead back only."""

import pytest
import torch

from contrastive_zoo.state.bounded import within


@pytest.mark.parametrize(
    ("value", "upstream", "gradient"),
    [
        (0.5, 1.0, 1.0),
        (0.5, -1.0, -1.0),
        (2.0, 1.0, 1.0),
        (2.0, -1.0, 0.0),
        (1.0, -1.0, 0.0),
        (-3.0, -1.0, -1.0),
        (-3.0, 1.0, 0.0),
        (0.0, 1.0, 0.0),
    ],
)
def test_value_and_gradient(value: float, upstream: float, gradient: float) -> None:
    parameter = torch.tensor(value, requires_grad=True)
    inside = within(parameter, 0.0, 1.0)
    assert float(inside.detach()) == min(max(value, 0.0), 1.0)
    assert float(torch.autograd.grad(inside, parameter, torch.tensor(upstream))[0]) == gradient


def test_descent_comes_back_from_outside() -> None:
    parameter = torch.tensor(5.0, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        (within(parameter, 0.0, 1.0) - 0.25).square().backward()
        optimiser.step()
    assert float(parameter.detach()) == pytest.approx(0.25)
