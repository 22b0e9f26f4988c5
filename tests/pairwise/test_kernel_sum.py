"""Value and gradient of the kernel sums against the double loop, for all backends."""

from functools import cache

import oracle
import pytest
import torch
from cases import DTYPES, SIZES, rows, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise

KERNELS = [("gaussian", 2.0), ("log", 0.7), ("imq", 0.5), ("riesz", 1.0), ("riesz", 2.5), ("riesz", -1.0), ("riesz", -2.0)]


def ids_of_views(size: int) -> Tensor:
    return torch.arange(size) // 2


def lengthened(x: Tensor, unit: bool) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1) if unit else x


@cache
def expected(shape: tuple[int, int], kernel: str, t: float, unit: bool) -> tuple[Tensor, Tensor]:
    x = rows(*shape, unit=False)
    value = oracle.kernel_sum(lengthened(x, unit), kernel, t, ids_of_views(shape[0]).tolist())
    return value.detach(), torch.autograd.grad(value, x, weights(shape[0]), materialize_grads=True)[0]


def conditioning(x: Tensor) -> float:
    """How much larger the rounding of a squared distance, a difference of inner products, is than the distance."""
    distances = torch.cdist(x.double(), x.double()).square() + torch.diag(torch.full((len(x),), torch.inf))
    return float(x.square().sum(1).max() / distances.min().clamp(max=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit", [True, False], ids=["unit rows", "any rows"])
@pytest.mark.parametrize(
    ("shape", "kernel", "t"),
    [*((shape, "gaussian", 2.0) for shape in SIZES), *(((63, 7), kernel, t) for kernel, t in KERNELS[1:])],
    ids=str,
)
def test_kernels(shape: tuple[int, int], kernel: str, t: float, unit: bool, engine: str, dtype: torch.dtype) -> None:
    x = rows(*shape, dtype=dtype, unit=False)
    value = pairwise.kernel_sum(
        lengthened(x, unit), kernel=kernel, parameter=t, ids=ids_of_views(len(x)), unit_rows=unit, backend=engine
    )
    reference, wanted = expected(shape, kernel, t, unit)
    logit = conditioning(lengthened(x.detach(), unit))
    assert_close(value, reference, "value", logit=logit)
    (gradient,) = torch.autograd.grad(value, x, weights(len(x), dtype=dtype))
    assert_close(gradient, wanted, "gradient of rows", logit=logit, magnitude=1.0)


def test_rows_without_others_have_the_sum_zero(engine: str) -> None:
    x = rows(5, 3)
    value = pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, ids=torch.full((5,), -4), backend=engine)
    assert torch.equal(value, torch.zeros_like(value))
    (gradient,) = torch.autograd.grad(value, x, weights(5))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit", [True, False], ids=["unit rows", "any rows"])
def test_coinciding_rows_are_at_the_floor_and_get_no_gradient(unit: bool, engine: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    value = pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, unit_rows=unit, backend=engine)
    assert_close(value, torch.full((2,), torch.finfo(dtype).eps, dtype=torch.float64).rsqrt(), "value")
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(engine: str, dtype: torch.dtype) -> None:
    x = rows(63, 7, dtype=dtype)
    value, reference = (pairwise.kernel_sum(r, kernel="log", parameter=2.0, backend=engine) for r in (x, x.float()))
    assert torch.equal(value, reference)


@pytest.mark.parametrize("unit", [True, False], ids=["unit rows", "any rows"])
@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
def test_sets_of_rows_are_by_themselves(kernel: str, unit: bool, engine: str) -> None:
    x = rows(62, 7, unit=unit).view(31, 2, 7).transpose(0, 1)

    def sums(x: Tensor) -> Tensor:
        return pairwise.kernel_sum(x, kernel=kernel, parameter=0.5, ids=ids_of_views(31), unit_rows=unit, backend=engine)

    together, each = sums(x), torch.stack([sums(one) for one in x.unbind()])
    assert_close(together, each, "sums")
    upstream = weights(2, 31)
    (found,), (wanted,) = torch.autograd.grad(together, x, upstream), torch.autograd.grad(each, x, upstream)
    assert_close(found, wanted, "gradient of rows")
