"""Learned parameters that stay within an interval."""

from typing import Any

import torch
from torch import Tensor


def within(parameter: Tensor, low: float, high: float) -> Tensor:
    """A parameter of one entry, clamped to the interval, as a 0-dim tensor.

    At an end of the interval, only gradients that move the parameter back into the interval are kept.
    """
    return _Within.apply(parameter.reshape(()), low, high)  # type: ignore[no-any-return,no-untyped-call]


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
