"""The Triton kernels of `normalized_rows` against its PyTorch code; float32 and float16."""

from typing import Any
from unittest import mock

import pytest
import torch
from cases import drawn
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo.batch import features

# The interpreter computes with NumPy, which warns of what a GPU does silently.
silent = pytest.mark.filterwarnings("ignore:(overflow|underflow|invalid value|divide by zero) encountered:RuntimeWarning")
pytestmark = pytest.mark.usefixtures("kernels")
SHAPES = [(1, 1), (3, 5), (9, 128), (7, 100), (2, 700)]
NORMALIZE = pytest.mark.parametrize("normalize", features.NORMALIZE)


def without_kernels() -> Any:
    return mock.patch.object(features, "has_kernels", return_value=False)


def both(z1: Tensor, z2: Tensor | None, normalize: str, operand: torch.dtype) -> list[tuple[Tensor, ...]]:
    from contrastive_zoo.batch import features_triton

    with without_kernels():
        plain = features.normalized_rows.plain(z1, z2, normalize, operand, "z1", False)
    return [features_triton.normalized_rows(z1, z2, normalize, operand), plain]


def inputs(size: int, width: int, views: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    scale = 0.5 / width**0.5 * torch.arange(1, size + 1, dtype=torch.float64)[:, None]  # shorter and longer than 1
    z = (drawn(views, size, width, seed=1) * scale).to(dtype)
    return (z[0], z[1]) if views == 2 else (z, None)


@NORMALIZE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("operand", [torch.float32, torch.float16], ids=str)
def test_rows_and_gradients(
    shape: tuple[int, int], views: int, normalize: str, dtype: torch.dtype, operand: torch.dtype
) -> None:
    from contrastive_zoo.batch import features_triton

    z1, z2 = inputs(*shape, views, dtype)
    ours, plain = both(z1, z2, normalize, operand)
    for what, a, b in zip(("rows", "similarity", "rounded", "divisor"), ours, plain, strict=True):
        assert_close(a, b, what, dtype=torch.float16 if operand == torch.float16 else torch.float32)
    rows, positive, rounded, divisor = plain
    assert rounded.dtype == operand
    assert torch.equal(rounded.float(), rows if operand == torch.float16 else rounded)
    upstream = drawn(*rows.shape, seed=2).float(), drawn(*positive.shape, seed=3).float()
    for wanted in ([0], [views - 1], list(range(views))):
        given = *upstream, rows, divisor, normalize, wanted, dtype
        found = features_triton.normalized_rows_backward(*given)
        with without_kernels():
            expected = features.normalized_rows_backward.plain(*given)
        assert found.dtype == dtype
        assert_close(found, expected, f"gradient of {wanted}", magnitude=1.0, dtype=dtype)


@NORMALIZE
@pytest.mark.parametrize("views", [2, 3])
def test_views_in_one_tensor_and_strides(views: int, normalize: str) -> None:
    z = drawn(views, 5, 2 * 6, seed=1).float()
    for stacked in (z[..., :6], z[..., ::2], z.transpose(1, 2)[:, :6].contiguous().transpose(1, 2)):
        ours, plain = both(stacked, None, normalize, torch.float32)
        for what, a, b in zip(("rows", "similarity", "rounded", "divisor"), ours, plain, strict=True):
            assert_close(a, b, what)


@silent
@NORMALIZE
def test_zero_huge_and_tiny_rows(normalize: str) -> None:
    z = drawn(2, 6, 5, seed=1).float()
    for row, size in enumerate((0.0, 1e30, 1e-30, 3e38, 1e-38)):
        z[:, row] = z[:, row] / z[:, row].abs().amax(-1, keepdim=True) * size
    ours, plain = both(z[0], z[1], normalize, torch.float32)
    for row in range(12):
        assert_close(ours[0][row], plain[0][row], f"row {row}")
        assert_close(ours[3].flatten()[row], plain[3].flatten()[row], f"divisor {row}")
    if normalize != "none":
        assert ours[0].isfinite().all()


@silent
@pytest.mark.parametrize("normalize", ["sphere", "ball"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_bad_values_show(normalize: str, bad: float) -> None:
    z = drawn(2, 4, 5, seed=1).float()
    z[1, 2, 3] = bad
    (rows, positive, *_), (wanted, *_) = both(z[0], z[1], normalize, torch.float32)
    assert rows.isnan().any(1).nonzero().flatten().tolist() == wanted.isnan().any(1).nonzero().flatten().tolist() == [5]
    assert positive[:, 0].isnan().nonzero().flatten().tolist() == [2]


def test_the_kernels_are_for_gpus_only() -> None:
    assert not features.has_kernels(torch.randn(3, 4, device="cpu"))
