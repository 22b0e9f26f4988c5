"""Random draws that are a function of a seed, a step and a position, so only seed and step need to be saved.

The draws of a step form a table. Any block of the table can be computed independently: a counter-based generator (Philox)
starts at the block's position. So the draws depend neither on the block size nor on the number of processes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrastive_zoo.operators import operator
from contrastive_zoo.samplers import philox

# Columns that are drawn together on the host, row by row. Changing the number changes the draws.
PANEL = 64
# What to do where one derivative of a loss that draws is not enough.
ONCE = "A loss that draws negatives has one derivative; its eval() form draws nothing and has more with backend='dense'."


def step_seed(seed: int, step: Tensor) -> Tensor:
    """(2,) seed of the draws of one step, on the device of the step.

    Args:
        seed: From 0 to 2^63 - 1.
        step: 0-dim int64; a copy is taken.
    """
    return torch.stack([torch.full_like(step, seed), step])


class DrawTable:
    """An unbounded table of independent draws, each determined by its row and column.

    On the CPU the draws come from NumPy. On an accelerator they are made there (`philox`), so they differ from the draws on the
    CPU, but are a function of the seed and the position too.

    Args:
        seed: Result of `step_seed`. For draws on an accelerator, a seed on the host is copied there; no value is read.
        device: Device of the draws.
        width: Columns that are drawn together on the CPU, a multiple of 8; tables of different widths hold different draws.
        stream: Tables of different streams are independent.
    """

    def __init__(self, seed: Tensor, device: torch.device, *, width: int = PANEL, stream: int = 0) -> None:
        self._device, self._width, self._stream = device, width, stream
        self._precise = widest_float(device)
        if device.type == "cpu":
            # Words of a fixed width: SeedSequence takes [a + b * 2^32] and [a, b] for the same.
            entropy = np.array([*seed.tolist(), stream], np.uint64).view(np.uint32)
            self._words = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
        else:
            self._seed = seed.to(device, non_blocking=seed.is_cpu)
        # Adjacent blocks share a panel, so the last panel is cached.
        self._last: tuple[object, Tensor] = (None, torch.empty(0))

    def uniform(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """A block of draws from [0, 1)."""
        if self._device.type != "cpu":
            return philox.uniform(self._seed, self._stream, rows, columns, dtype)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        block = torch.empty(height, width, dtype=dtype, device=self._device)
        for left in range(columns.start // self._width * self._width, columns.stop if height else 0, self._width):
            low, high = max(left, columns.start), min(left + self._width, columns.stop)
            panel = self._kept_panel(left, rows, dtype)
            block[:, low - columns.start : high - columns.start] = panel[:, low - left : high - left]
        return block

    def exponential(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """A block of draws from the exponential distribution, accurate near 0."""
        # Uniform draws in float32 are multiples of 2^-24, too coarse for the smallest of a million exponentials. One minus a
        # draw is exact, and PyTorch takes a tenth of the time for log as for log1p.
        return self.uniform(rows, columns, self._precise).neg_().add_(1).log_().neg_().to(dtype)

    def integers(self, rows: slice, columns: slice, below: Tensor) -> Tensor:
        """A block of int64 draws from 0 to ``below - 1``, (R, 1) for each row; 0 where ``below`` is 0."""
        draws = (self.uniform(rows, columns, self._precise) * below).long()
        return draws.minimum((below - 1).clamp_min(0))  # a product may be rounded up

    def _kept_panel(self, left: int, rows: slice, dtype: torch.dtype) -> Tensor:
        place = left, rows.start, rows.stop, dtype
        if self._last[0] != place:
            self._last = place, self._panel(left, rows, dtype)
        return self._last[1]

    def _panel(self, left: int, rows: slice, dtype: torch.dtype) -> Tensor:
        """A whole panel of columns, starting at ``left``."""
        # A step of Philox gives 256 bits: 8 draws in float32 or 4 in float64.
        bits = 32 if dtype == torch.float32 else 64
        counter = np.array([rows.start * self._width * bits // 256, left, 0, 0], np.uint64)
        source = np.random.Generator(np.random.Philox(key=self._words, counter=counter))
        as_numpy: Any = np.float32 if dtype == torch.float32 else np.float64
        return torch.from_numpy(source.random((rows.stop - rows.start, self._width), dtype=as_numpy))


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def random_order(size: int, seed: Tensor, stream: int) -> Tensor:
    """(size,) int64, a random order, on the device of the seed."""
    draws = DrawTable(seed, seed.device, stream=stream)
    table = draws.uniform(slice(0, -(-size // PANEL)), slice(0, PANEL), widest_float(seed.device))
    return table.flatten()[:size].argsort()


def inverse(order: Tensor) -> Tensor:
    """The place of each entry in an order."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


@operator("contrastive_zoo::column_order", "(SymInt columns, Tensor seed) -> Tensor")
def column_order(columns: int, seed: Tensor) -> Tensor:
    """A random order of columns, on the device of the seed."""
    return random_order(columns, seed, stream=1)


@column_order.register_fake
def _(columns: int, seed: Tensor) -> Tensor:
    return torch.empty(columns, dtype=torch.int64, device=seed.device)
