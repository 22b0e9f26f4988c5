"""The floor of squared distances: equal rows, rows just above the floor, and rows of half precision."""

from collections.abc import Callable

import oracle
import pytest
import torch
from cases import DTYPES, HALF, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise


def lengthened(x: Tensor, unit: bool) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1) if unit else x


def floor_of(width: int, dtype: torch.dtype) -> float:
    """The floor of squared distances between unit rows."""
    return (width + 32) * torch.finfo(dtype).eps


DIRECTIONS = {
    "random": lambda width: torch.randn(width, generator=torch.Generator().manual_seed(width), dtype=torch.float64),
    # All products are alike, and so is their rounding, which adds up.
    "constant": lambda width: torch.full((width,), 0.37, dtype=torch.float64),
    "few values": lambda width: torch.randint(1, 4, (width,), generator=torch.Generator().manual_seed(1)).double(),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit", [True, False], ids=["unit rows", "any rows"])
@pytest.mark.parametrize("width", [1, 2, 7, 100, 768, 1536, 4096])
@pytest.mark.parametrize("make", DIRECTIONS.values(), ids=DIRECTIONS)
def test_equal_directions_are_at_the_floor_and_get_no_gradient(
    make: Callable[[int], Tensor], width: int, unit: bool, engine: str, dtype: torch.dtype
) -> None:
    """Of any scale before they are normalised, side by side and far apart; rows of any length have a floor of their size."""
    length = torch.linspace(0.3, 7, 40, dtype=torch.float64)[:, None]
    rows = torch.nn.functional.normalize((make(width) * length).to(dtype), dim=1)
    size = 1.0 if unit else 5.0
    x = (rows * size).requires_grad_()
    value = pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, unit_rows=unit, backend=engine)
    expected = torch.full((40,), 39 * (size**2 * floor_of(width, dtype)) ** -0.5, dtype=torch.float64)
    assert_close(value, expected, "value", logit=1e3)
    (gradient,) = torch.autograd.grad(value, x, weights(40, dtype=dtype))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("t", [1.0, 2.5, -1.5])
def test_zero_rows_are_at_a_finite_distance(t: float, engine: str) -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    value = pairwise.kernel_sum(x, kernel="riesz", parameter=t, backend=engine)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit", [True, False], ids=["unit rows", "any rows"])
@pytest.mark.parametrize(("width", "t"), [(2, 1.0), (16, 2.5), (128, 1.0), (128, -1.5), (512, 2.5)], ids=str)
def test_rows_just_above_the_floor(width: int, t: float, unit: bool, engine: str, dtype: torch.dtype) -> None:
    """Pairs at 1.5 to 12 times the floor: the error of a squared distance is a small part of the floor."""
    draws = torch.Generator().manual_seed(width)
    first = torch.nn.functional.normalize(torch.randn(20, width, generator=draws, dtype=torch.float64), dim=1)
    across = torch.randn(20, width, generator=draws, dtype=torch.float64)
    across = torch.nn.functional.normalize(across - (across * first).sum(1, keepdim=True) * first, dim=1)
    apart = (torch.linspace(1.5, 12, 20, dtype=torch.float64) * floor_of(width, dtype)).sqrt()[:, None]
    z = torch.stack([first, first + apart * across], 1).flatten(0, 1).to(dtype).requires_grad_()
    x = lengthened(z, unit)
    found = pairwise.kernel_sum(x, kernel="riesz", parameter=t, unit_rows=unit, backend=engine)
    exact = z.detach().double().requires_grad_()
    wanted = by_distances(lengthened(exact, unit), t, dtype)
    gradient, reference = torch.autograd.grad(found.sum(), z)[0].double(), torch.autograd.grad(wanted.sum(), exact)[0]
    off = (gradient - reference).norm(dim=1) / reference.norm(dim=1)
    assert float(off.max()) < 0.1
    assert float(off.square().mean().sqrt()) < 0.05


def by_distances(x: Tensor, t: float, dtype: torch.dtype) -> Tensor:
    """(N,) Riesz energies from the differences of rows, with the floor of a dtype, without a loop."""
    distances = (x[:, None] - x[None, :]).square().sum(2)
    squares = x.detach().square().sum(1)
    floor = floor_of(x.shape[1], dtype) * (squares[:, None] + squares[None, :]) / 2
    others = ~torch.eye(len(x), dtype=torch.bool)
    values = oracle.kernel_value("riesz", torch.where(distances < floor, floor, distances) + (~others).double(), t)
    return (values * others).sum(1)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rows_of_half_precision_have_a_length(engine: str, dtype: torch.dtype) -> None:
    """Equal rows whose length is not quite 1 are at the floor, to which the square of the rounding adds."""
    row = torch.nn.functional.normalize(torch.tensor([0.3, 0.7, -0.2, 0.11]), dim=0).to(dtype)
    x = row.repeat(5, 1).requires_grad_()
    value = pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, unit_rows=True, backend=engine)
    floor = (floor_of(4, torch.float32) + torch.finfo(dtype).eps ** 2) * row.double().square().sum()
    assert_close(value, (4 * floor**-0.5).expand(5), "value")
    assert not torch.autograd.grad(value.sum(), x)[0].any()
