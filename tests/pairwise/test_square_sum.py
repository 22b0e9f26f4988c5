"""Value and gradients of the sums of squares against the double loop, in each of the ways that they are computed."""

from functools import cache

import oracle
import pytest
import torch
from cases import BACKENDS, DTYPES, rows, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise

# Fewer rows than features, as many, and more; ids that come once, twice, more often than there are features, or are all equal.
SHAPES = [(1, 4), (2, 1), (3, 5), (7, 7), (63, 7), (111, 3)]
IDS = {
    "different": lambda size: torch.arange(size),
    "twice": lambda size: torch.arange(size) // 2,
    "some twice": lambda size: torch.arange(size).where(torch.arange(size) % 3 > 0, torch.tensor(-4)),
    "few": lambda size: torch.arange(size) * 7 % 5 - 2,
    "equal": lambda size: torch.full((size,), 3, dtype=torch.int32),
}
backends = pytest.mark.parametrize("backend", BACKENDS)


def inputs(shape: tuple[int, int], dtype: torch.dtype = torch.float64, unit: bool = True) -> tuple[Tensor, Tensor]:
    return rows(*shape, dtype=dtype, unit=unit), rows(*shape, seed=1, dtype=dtype, unit=unit)


@cache
def expected(shape: tuple[int, int], ids: str) -> tuple[Tensor, ...]:
    """Value, and gradients of both."""
    x, keys = inputs(shape)
    value = oracle.square_sum(x, keys, IDS[ids](shape[0]).tolist())
    return value.detach(), *torch.autograd.grad(value, (x, keys), weights(shape[0]), materialize_grads=True)


@backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape: tuple[int, int], ids: str, dtype: torch.dtype, backend: str) -> None:
    x, keys = inputs(shape, dtype)
    value = pairwise.square_sum(x, keys, ids=IDS[ids](shape[0]), backend=backend)
    reference, *wanted = expected(shape, ids)
    # What is taken off, and the sum that it is taken off from, may be as large as the number of rows.
    assert_close(value, reference, "value", magnitude=shape[0])
    found = torch.autograd.grad(value, (x, keys), weights(shape[0], dtype=dtype))
    for name, gradient, other in zip(("rows", "keys"), found, wanted, strict=True):
        assert_close(gradient, other, f"gradient of {name}", magnitude=shape[0])


@backends
def test_without_ids_only_a_row_and_its_key_do_not_count(backend: str) -> None:
    assert_close(pairwise.square_sum(*inputs((63, 7)), backend=backend), expected((63, 7), "different")[0], "value")


@backends
def test_gradient_of_one_side_alone(backend: str) -> None:
    x, keys = inputs((63, 7))
    of_rows = pairwise.square_sum(x, keys.detach(), backend=backend)
    of_keys = pairwise.square_sum(x.detach(), keys, backend=backend)
    assert_close(torch.autograd.grad(of_rows, x, weights(63))[0], expected((63, 7), "different")[1], "gradient of rows")
    assert_close(torch.autograd.grad(of_keys, keys, weights(63))[0], expected((63, 7), "different")[2], "gradient of keys")


@pytest.mark.parametrize("shape", [(64, 8), (8, 64)], ids=str)
def test_little_is_lost_where_others_are_orthogonal_and_positives_are_not(shape: tuple[int, int]) -> None:
    """In float32, to the resolution of the squares of the positives, which are taken off; exactly where they never went in."""
    exact = torch.eye(max(shape), dtype=torch.float64)[: shape[0], : shape[1]] + 1e-3 * rows(*shape).detach()
    x = torch.nn.functional.normalize(exact, dim=1)
    reference = oracle.square_sum(x, x, range(shape[0]))
    value = pairwise.square_sum(x.float(), x.float())
    positives = 0.0 if shape[0] <= shape[1] else 1.0
    assert_close(value, reference, "value", magnitude=positives)


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    x, keys = inputs((63, 7), dtype)
    value = pairwise.square_sum(x, keys, backend=backend)
    assert torch.equal(value, pairwise.square_sum(x.float(), keys.float(), backend=backend))
    assert all(gradient.dtype == dtype for gradient in torch.autograd.grad(value.sum(), (x, keys)))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"x and keys must have the same shape, got \(6, 3\) and \(5, 3\)", {"keys": torch.ones(5, 3)}),
        (ValueError, r"x must be \(rows, features\)", {"x": torch.ones(6)}),
        (ValueError, r"ids must have shape \(6,\).*got \(3,\)", {"ids": torch.arange(3)}),
        (TypeError, "ids must hold integers", {"ids": torch.ones(6)}),
        (ValueError, "x is on cpu and keys on meta", {"keys": torch.ones(6, 3, device="meta")}),
        (ValueError, "backend must be one of", {"backend": "fast"}),
    ],
)
def test_arguments(error: type[Exception], message: str, change: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        pairwise.square_sum(**{"x": torch.ones(6, 3), "keys": torch.ones(6, 3), **change})
