"""Random numbers of samples: a function of the seed, the epoch and the sample, never of the batch or of the process.

So a run that is cut into processes, or stopped and resumed, sees the views that it would have seen in one piece.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

STRIDE = -0x61C8864680B583EB  # of splitmix64: 2^64 divided by the golden ratio, as a signed number
FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: int64 numbers that look drawn at random."""
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # without the sign that >> brings along


def seed_of(*numbers: int) -> int:
    """One seed, from 0 to 2^63 - 1, of several whole numbers."""
    state = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        state = mix(state + STRIDE + number)
    return int(state) & (2**63 - 1)


class Draws:
    """Draws of the views of a batch, a row for each sample.

    Args:
        index: (B,) positions of the samples in the dataset, on the device of the draws.
        *numbers: Seed, epoch, number of the view.
    """

    def __init__(self, index: Tensor, *numbers: int) -> None:
        self.device = index.device
        self._rows = mix(index * STRIDE + seed_of(*numbers))
        self._used = 0

    def uniform(self, low: float = 0, high: float = 1, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) numbers from [low, high)."""
        size = torch.Size(shape).numel()
        places = torch.arange(self._used, self._used + size, device=self.device)
        self._used += size
        bits = mix(self._rows[:, None] + STRIDE * (places + 1))
        return low + (high - low) * (_shifted(bits, 40).float() * 2**-24).view(len(bits), *shape)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) numbers of the standard normal distribution, by the method of Box and Muller."""
        radius = (-2 * torch.log1p(-self.uniform(shape=shape))).sqrt()
        return radius * (2 * torch.pi * self.uniform(shape=shape)).cos()


class FreeDraws:
    """The same draws from PyTorch's own generator, for loops that seed it themselves."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = count, device

    def uniform(self, low: float = 0, high: float = 1, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) numbers from [low, high)."""
        return torch.empty(self.count, *shape, device=self.device).uniform_(low, high)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) numbers of the standard normal distribution."""
        return torch.randn(self.count, *shape, device=self.device)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """PyTorch's generator of the host, seeded by numbers, and afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*numbers))  # torch.manual_seed takes a millisecond
        yield
