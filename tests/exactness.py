"""How exact kernels must be: at most twice the error of dense code in the same precision."""

from typing import Any

import torch
from operations import OUTCOME, Leaves, Operation, leaves
from torch import Tensor
from torch.overrides import TorchFunctionMode


def single(size: int, width: int, **options: Any) -> Leaves:
    return leaves(size, width, dtype=torch.float32, **options)


def exact(given: Leaves) -> Leaves:
    return Leaves(*(t.detach().double().requires_grad_() for t in given))


def errors(found: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> list[float]:
    differences = [(a.double() - b)[b.isfinite()].norm() for a, b in zip(found, reference, strict=True)]
    return [float(difference) for difference in differences]


def assert_as_exact_as_dense(operation: Operation, given: Leaves, kind: str) -> None:
    """At most twice the error of dense code in the same precision, plus the error of a logit.

    Both passes compute products. Their additions may be in another order, and a difference between the products of the passes
    is multiplied by the scale; dense code keeps its products.
    """
    reference = operation.outcome(exact(given), kind, backend="dense")
    fused, dense = (operation.outcome(given, kind, backend=backend) for backend in ("fused", "dense"))
    assert torch.equal(fused[0].isinf(), reference[0].isinf())
    for what, found, allowed, result in zip(
        OUTCOME, errors(fused, reference), errors(dense, reference), reference, strict=True
    ):
        largest = float(result[result.isfinite()].norm()) + 1e-3
        logit = 2.0**-23 * (8 + 10 * operation.logit / 4)
        assert found <= 2 * allowed + logit * largest, f"{what}: {found:.2e}, dense {allowed:.2e}, norm {largest:.2e}"


class _Product(torch.autograd.Function):
    """A product of rows in half precision, forward and backward, as dense code under autocast computes it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.half(), b.half()
        ctx.save_for_backward(a, b)
        return (a @ b).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), grad = ctx.saved_tensors, grads[0].half()
        return (grad @ b.mT).float(), (a.mT @ grad).float()


class HalfProducts(TorchFunctionMode):
    """Products in half precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__):
            return _Product.apply(*args)
        return func(*args, **(kwargs or {}))


def assert_as_exact_as_dense_in_half(operation: Operation, size: int, width: int, kind: str, **options: Any) -> None:
    """The same for rows in float16, where dense code multiplies in float16; bfloat16 is beyond Triton's interpreter."""
    given = leaves(size, width, dtype=torch.float16, **options)
    reference = operation.outcome(exact(given), kind, backend="dense")
    fused = operation.outcome(given, kind, backend="fused")
    with HalfProducts():
        dense = operation.outcome(given, kind, backend="dense")
    for what, found, allowed, result in zip(
        OUTCOME, errors(fused, reference), errors(dense, reference), reference, strict=True
    ):
        largest = float(result[result.isfinite()].norm()) + 1e-3
        assert found <= 2 * allowed + 2.0**-11 * largest, f"{what}: {found:.2e}, dense {allowed:.2e}, norm {largest:.2e}"
