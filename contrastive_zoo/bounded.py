"""Learned parameters that stay within an interval."""

from typing import Any

import torch
from torch import Tensor


def within(parameter: Tensor, low: float, high: float) -> Tensor:
    """The parameter or the nearer end of the interval; at an end, a gradient step leads back inside but not further out."""
    return _Within.apply(parameter, low, high)  # type: ignore[no-any-return,no-untyped-call]


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(parameter <= low, parameter >= high)
        return parameter.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        at_low, at_high = ctx.saved_tensors
        # Descent goes against the gradient: a negative one would raise the parameter.
        outwards = (at_low & (grads[0] > 0)) | (at_high & (grads[0] < 0))
        return torch.where(outwards, 0, grads[0]), None, None
