"""Named kernels of a squared distance, each with its derivative.

Functions may work in place on their argument; `value` is also used by autograd in the dense reference, so it does not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

# A power of 2 takes PyTorch less time than one of e: 0.4 of it on an AMD EPYC of 2023.
LOG2_E = math.log2(math.e)


class Kernel(NamedTuple):
    """A kernel of the squared distance ``d2`` with one float parameter ``t``, and its derivative in ``d2``."""

    value: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    valid: Callable[[float], bool]
    wanted: str


def _riesz(d2: Tensor, t: float) -> Tensor:
    return d2.pow(-t / 2) if t > 0 else d2.pow(-t / 2).neg()


def _riesz_derivative(d2: Tensor, t: float) -> Tensor:
    return d2.pow(-t / 2 - 1).mul(-abs(t) / 2)


KERNELS: dict[str, Kernel] = {
    "gaussian": Kernel(
        lambda d2, t: d2.mul(-t * LOG2_E).exp2(),
        lambda d2, t: d2.mul(-t * LOG2_E).exp2_().mul_(-t),
        lambda t: t > 0,
        "t > 0",
    ),
    "log": Kernel(
        lambda d2, t: d2.mul(t).log1p().neg(),
        lambda d2, t: d2.mul(t).add_(1).reciprocal_().mul_(-t),
        lambda t: t > 0,
        "t > 0",
    ),
    "imq": Kernel(
        lambda d2, t: d2.add(t * t).rsqrt().mul(t),
        lambda d2, t: d2.add(t * t).pow_(-1.5).mul_(-t / 2),
        lambda t: t > 0,
        "t > 0",
    ),
    "riesz": Kernel(_riesz, _riesz_derivative, lambda t: t != 0, "t != 0"),
}

KERNEL_NAMES = tuple(KERNELS)


def get_kernel(name: str) -> Kernel:
    """The kernel by that name."""
    return KERNELS[name]
