"""Log-sum-exp with a scale per row and the mean under its softmax, against double loops and against one another."""

from typing import Any

import oracle
import pytest
import torch
from cases import DTYPES, SIZES, rows, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise

IDS = {
    "different": lambda size: torch.arange(size),
    "views": lambda size: torch.arange(size) // 2,
    "few": lambda size: torch.arange(size) * 7 % 5 - 2,
    "equal": lambda size: torch.full((size,), 3),
}
self_and_keys = pytest.mark.parametrize("with_keys", [False, True], ids=["self", "keys"])


def scales(size: int, largest: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return (largest * torch.linspace(0.1, 1, size, dtype=torch.float64)).to(dtype).requires_grad_()


def check(
    x: Tensor, keys: Tensor | None, scale: Tensor, ids: str, engine: str, logit: float, **arguments: Any
) -> tuple[Tensor, ...]:
    """Values and gradients equal those of the double loops in float64."""
    given = [tensor for tensor in (x, keys, scale) if tensor is not None]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    row_ids, key_ids = (IDS[ids](len(t)) for t in (x, x if keys is None else keys))
    identity: dict[str, Tensor] = {"ids": row_ids} | ({} if keys is None else {"key_ids": key_ids})
    sums, means = pairwise.logsumexp_with_mean(x, keys, scale=scale, **identity, backend=engine, **arguments)
    operands = exact[0], exact[0] if keys is None else exact[1], exact[-1], row_ids.tolist(), key_ids.tolist()
    wanted = oracle.logsumexp(*operands)
    assert_close(sums, wanted, "sums", logit=logit, magnitude=1.0)
    assert_close(means, oracle.softmax_mean(*operands), "means", logit=logit, magnitude=1.0)
    assert not means.requires_grad
    upstream = weights(len(x))
    found = torch.autograd.grad(sums, given, upstream.to(x.dtype))
    references = torch.autograd.grad(wanted, exact, upstream, materialize_grads=True)
    for gradient, other in zip(found, references, strict=True):
        assert_close(gradient, other, "gradient", dtype=x.dtype, logit=logit, magnitude=max(1.0, logit / 10))
    return sums, means


@self_and_keys
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES[:-1], ids=str)
@pytest.mark.parametrize("ids", IDS)
def test_shapes_and_ids(shape: tuple[int, int], ids: str, with_keys: bool, dtype: torch.dtype, engine: str) -> None:
    keys = rows(2 * shape[0] // 3 + 1, shape[1], seed=1, dtype=dtype) if with_keys else None
    check(rows(*shape, dtype=dtype), keys, scales(shape[0], 20.0, dtype), ids, engine, 20.0, norm_bound=1.01)


@self_and_keys
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest", [0.1, 50.0, 200.0, -20.0])
@pytest.mark.parametrize("norm_bound", [1.01, torch.inf])
def test_scales(largest: float, norm_bound: float, with_keys: bool, dtype: torch.dtype, engine: str) -> None:
    keys = rows(45, 7, seed=1, dtype=dtype) if with_keys else None
    check(rows(63, 7, dtype=dtype), keys, scales(63, largest, dtype), "views", engine, abs(largest), norm_bound=norm_bound)


def test_rows_of_any_length(engine: str) -> None:
    x = rows(63, 7, unit=False)
    check(x, None, scales(63, 2.0), "views", engine, 2 * float(x.detach().norm(dim=1).max()) ** 2)


@self_and_keys
def test_one_scale_for_all_is_the_ordinary_sum(with_keys: bool, engine: str) -> None:
    x, keys = rows(63, 7), rows(45, 7, seed=1) if with_keys else None
    sums, _ = pairwise.logsumexp_with_mean(x, keys, scale=torch.full((63,), 10.0), backend=engine)
    expected = pairwise.logsumexp(x, keys, scale=10.0, backend=engine)
    assert_close(sums, expected, "sums")
    assert_close(torch.autograd.grad(sums.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0], "gradient")


def test_only_gradients_that_are_asked_for(engine: str) -> None:
    x, keys, scale = rows(63, 7), rows(45, 7, seed=1), scales(63, 20.0)
    sums, _ = pairwise.logsumexp_with_mean(x, keys, scale=scale, backend=engine)
    every = torch.autograd.grad(sums, (x, keys, scale), weights(63))
    for number, leaf in enumerate((x, keys, scale)):
        given = [t if t is leaf else t.detach() for t in (x, keys, scale)]
        alone, _ = pairwise.logsumexp_with_mean(given[0], given[1], scale=given[2], backend=engine)
        assert_close(torch.autograd.grad(alone, leaf, weights(63))[0], every[number], "gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(engine: str, dtype: torch.dtype) -> None:
    x, scale = rows(63, 7, dtype=dtype), scales(63, 20.0, torch.float32)
    of_half = pairwise.logsumexp_with_mean(x, scale=scale, backend=engine)
    of_float = pairwise.logsumexp_with_mean(x.float(), scale=scale, backend=engine)
    assert all(torch.equal(a, b) for a, b in zip(of_half, of_float, strict=True))


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0), torch.ones(3), torch.ones(4, 1)], ids=str)
def test_a_scale_that_is_not_one_per_row_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"scale must be a tensor with one scale per row, \(4,\), got"):
        pairwise.logsumexp_with_mean(torch.ones(4, 2), scale=scale)
    with pytest.raises(ValueError, match="ids and key_ids go together"):
        pairwise.logsumexp_with_mean(torch.ones(4, 2), torch.ones(3, 2), scale=torch.ones(4), ids=torch.arange(4))
