"""Values that change with the number of training steps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contrastive_zoo.checks import check_count, check_number
from contrastive_zoo.operators import operator


@dataclass(frozen=True)
class CosineSchedule:
    r"""Half a cosine from one value to another.

    $$v(k) = e + \tfrac{1}{2}(s - e)\big(1 + \cos(\pi \min(k / K, 1))\big)$$

    Args:
        start: Value s at step 0.
        end: Value e at step K and later.
        steps: Number of steps, K.

    Raises:
        TypeError: A value is no number.
        ValueError: ``steps`` is below 1.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> gamma = zoo.CosineSchedule(1.0, 0.2, steps=100)
        >>> [round(float(gamma(torch.tensor(k))), 3) for k in (0, 50, 100, 200)]
        [1.0, 0.6, 0.2, 0.2]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        # Convert scalars of any kind to Python numbers.
        object.__setattr__(self, "start", check_number("start", self.start))
        object.__setattr__(self, "end", check_number("end", self.end))
        object.__setattr__(self, "steps", check_count("steps", self.steps))

    def __call__(self, step: Tensor) -> Tensor:
        """The value after ``step`` steps, a 0-dim tensor."""
        progress = (step.to(torch.float64) / self.steps).clamp(max=1)
        return self.end + (self.start - self.end) * (1 + torch.cos(math.pi * progress)) / 2


@operator("contrastive_zoo::scheduled_weight", "(Tensor weight) -> Tensor")
def scheduled_weight(weight: Tensor) -> Tensor:
    """The weight gamma that a schedule returned; raises, if it is on the host, unless it lies in (0, 1]."""
    if weight.is_cpu:
        check_number("gamma", float(weight), low=0, high=1, open_low=True)
    return weight.clone()


@scheduled_weight.register_fake
def _(weight: Tensor) -> Tensor:
    return torch.empty_like(weight)
