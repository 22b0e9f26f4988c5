"""Learned parameters that stay within an interval."""

from typing import Any

import torch
from torch import Tensor


def within(parameter: Tensor, low: float, high: float) -> Tensor:
    """A parameter of one entry, clamped to the interval, as a 0-dim tensor.

    At an end of the interval, only gradients that move the parameter back into the interval are kept.
    """
    scalar = parameter.reshape(())
    if _readable(scalar) and low < scalar.item() < high:
        return scalar  # in eager mode the function below takes longer than a small batch's products
    return _Within.apply(scalar, low, high)  # type: ignore[no-any-return,no-untyped-call]


def _readable(scalar: Tensor) -> bool:
    """Whether the host knows the value of a tensor without a synchronisation or a transform that hides it."""
    return scalar.is_cpu and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


class _Within(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(parameter: Tensor, low: float, high: float) -> Tensor:  # type: ignore[override]
        return parameter.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        parameter, low, high = inputs
        ctx.save_for_backward(parameter <= low, parameter >= high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        at_low, at_high = ctx.saved_tensors
        # Descent moves against the gradient: a negative gradient raises the parameter.
        outwards = (at_low & (grads[0] > 0)) | (at_high & (grads[0] < 0))
        return torch.where(outwards, 0, grads[0]), None, None
