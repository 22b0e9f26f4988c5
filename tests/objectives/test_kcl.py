"""KCL where rows coincide or nearly do: Riesz kernels are infinite there, and rounding decides which rows are equal."""

from collections.abc import Iterator

import pytest
import torch
from cases import BACKENDS, HALF
from tolerances import assert_close
from torch import Tensor
from torch.nn.functional import normalize

import contrastive_zoo as zoo

SIZE, WIDTH = 14, 8
KERNELS = [("riesz", 1.0), ("riesz", 2.5), ("riesz", -1.5), ("riesz", -0.5), ("gaussian_riesz", 1.0), ("gaussian_riesz", 2.5)]
SEEDS: dict[str | bool, int] = {"sphere": 60, "ball": 15, False: 15}
every_kernel = pytest.mark.parametrize(("kernel", "t"), KERNELS, ids=str)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def batches(normalize_rows: str | bool, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of which the first has two equal rows; on the sphere every other time rows of one direction."""
    for seed in range(SEEDS[normalize_rows]):
        draws = torch.Generator().manual_seed(seed)
        z1 = torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64).to(dtype)
        z2 = (z1 + 0.5 * torch.randn(SIZE, WIDTH, generator=draws, dtype=torch.float64)).to(dtype)
        z1[9] = z1[2] * (2.7 if seed % 2 and normalize_rows == "sphere" else 1)
        yield z1.requires_grad_(), z2.requires_grad_()


def rows_of(z: Tensor, normalize_rows: str | bool) -> Tensor:
    length = z.norm(dim=1, keepdim=True)
    return z if normalize_rows is False else z / (length if normalize_rows == "sphere" else length.clamp_min(1))


def floored(d2: Tensor, floor: Tensor) -> Tensor:
    return torch.where(d2 < floor, floor, d2)


def by_differences(a: Tensor, b: Tensor, kernel: str, t: float, gamma: float, resolution: float) -> Tensor:
    """The loss of rows from their differences; pairs below the floor are at the floor, a constant."""
    sign, others = (1 if t > 0 else -1), ~torch.eye(len(a), dtype=torch.bool)

    def riesz(x: Tensor, y: Tensor) -> Tensor:
        floor = resolution * (x.square().sum(-1) + y.square().sum(-1)).detach() / 2
        return sign * floored((x - y).square().sum(-1), floor) ** (-t / 2)

    alignment = riesz(a, b) if kernel == "riesz" else (-2 * (a - b).square().sum(1)).exp()
    energies = []
    for rows in (a, b):
        i, j = others.nonzero().unbind(1)
        energies.append(riesz(rows[i], rows[j]).mean())
    return -2 * alignment.mean() + gamma * (energies[0] + energies[1])


def resolution_of(dtype: torch.dtype) -> float:
    return (WIDTH + 32) * torch.finfo(dtype).eps


@every_kernel
@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize_rows", SEEDS, ids=str)
def test_one_duplicate(normalize_rows: str | bool, dtype: torch.dtype, backend: str, kernel: str, t: float) -> None:
    loss_fn = zoo.get_loss("kcl", kernel=kernel, t=t, normalize=normalize_rows, backend=backend)
    for features in batches(normalize_rows, dtype):
        loss = loss_fn(*features)
        exact = [z.detach().double().requires_grad_() for z in features]
        expected = by_differences(*(rows_of(z, normalize_rows) for z in exact), kernel, t, 16.0, resolution_of(dtype))
        # Nearest rows are at a squared distance of 1/100 or so: it loses two digits.
        assert_close(loss, expected, "loss", logit=100.0)
        for found, wanted in zip(torch.autograd.grad(loss, features), torch.autograd.grad(expected, exact), strict=True):
            assert_close(found, wanted, "gradient", logit=100.0, magnitude=1.0)


@every_kernel
@every_backend
def test_the_order_of_rows_does_not_matter(kernel: str, t: float, backend: str) -> None:
    """With a duplicate, and with two rows four times as far apart as the floor."""
    loss_fn = zoo.get_loss("kcl", kernel=kernel, t=t, backend=backend)
    for number, features in enumerate(batches("ball", torch.float32)):
        z1, z2 = (z.detach().clone() for z in features)
        z1 = normalize(z1, dim=1)
        if number % 2:
            step = normalize(torch.ones(WIDTH) - (z1[2].sum() * z1[2]), dim=0)
            z1[9] = z1[2] + 2 * resolution_of(torch.float32) ** 0.5 * step
        z1.requires_grad_()
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(number))
        (gradient,) = torch.autograd.grad(loss_fn(z1, z2), z1)
        (moved,) = torch.autograd.grad(loss_fn(z1[order], z2[order]), z1)
        assert_close(moved, gradient, "gradient", dtype=torch.float32, logit=1e5 if number % 2 else 100.0, magnitude=1.0)


@every_kernel
@every_backend
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["half features", "autocast"])
def test_one_duplicate_in_half_precision(autocast: bool, dtype: torch.dtype, backend: str, kernel: str, t: float) -> None:
    """Rounded rows are not of length 1; equal ones are at the distance 0 nevertheless, and so at the floor."""
    loss_fn = zoo.get_loss("kcl", kernel=kernel, t=t, backend=backend)
    for _, (z1, z2) in zip(range(15), batches("ball", torch.float32 if autocast else dtype), strict=False):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            loss = loss_fn(z1, z2)
        found = torch.autograd.grad(loss, (z1, z2))
        unit = [normalize(z.float(), dim=1) for z in (z1, z2)]
        rows = [(x + (x.to(dtype).float() - x).detach()).double() for x in unit]
        expected = by_differences(*rows, kernel, t, 16.0, resolution_of(torch.float32) + torch.finfo(dtype).eps ** 2)
        assert_close(loss, expected, "loss", dtype=torch.float32, logit=100.0)
        for gradient, wanted in zip(found, torch.autograd.grad(expected, (z1, z2)), strict=True):
            assert_close(gradient, wanted, "gradient", dtype=dtype, magnitude=1.0)


@every_backend
@pytest.mark.parametrize("kernel", ["gaussian", "log", "imq"])
def test_other_kernels_have_no_floor(kernel: str, backend: str) -> None:
    """Equal rows have the value at distance 0, up to rounding."""
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 6.0]])
    loss_fn = zoo.get_loss("kcl", kernel=kernel, t=1.0, gamma=1.0, backend=backend)
    loss_fn(z, z)
    at_zero = {"gaussian": 1.0, "log": 0.0, "imq": 1.0}[kernel]
    assert float(loss_fn.diagnostics["alignment"]) == at_zero
    assert float(loss_fn.diagnostics["energy"]) == pytest.approx(2 * at_zero, abs=2e-6)
