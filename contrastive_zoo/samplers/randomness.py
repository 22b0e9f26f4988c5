"""Random draws that are a function of a seed, a step and a place, so that nothing else has to be saved.

The draws of a step form a table. Any block of it can be computed by itself: a counter-based generator (Philox) starts at the
block's place. So neither blocks of work nor processes change what is drawn.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Columns that are drawn together, a row of them at a time; on accelerators together with as many rows as stand below. Both
# are part of what the draws are: other numbers are other draws.
PANEL = 64
PANEL_ROWS = 1024
# Seeds of neighbouring panels differ by it: an odd number whose lower half is large too, which is all some generators take.
SEED_STRIDE = 0x9E3779B97F4A7C15


def step_seed(seed: int, step: Tensor) -> Tensor:
    """(2,) seed of the draws of one step, on the host.

    Args:
        seed: From 0 to 2^63 - 1.
        step: 0-dim integer on the host; a copy is taken.
    """
    return torch.stack([torch.full_like(step, seed), step])


class DrawTable:
    """Independent draws by row and column, as many as are asked for; the same whatever else is asked for.

    On the CPU the draws come from NumPy. On an accelerator they come from the generator that PyTorch has for it, so they are
    other draws, and a function of the seed and the place all the same.

    Args:
        seed: What `step_seed` returned.
        device: Where the draws are needed.
        width: Columns that are drawn together, a multiple of 8; a table of another width holds other draws.
        stream: Tables of other streams are independent of this one.
    """

    def __init__(self, seed: Tensor, device: torch.device, *, width: int = PANEL, stream: int = 0) -> None:
        # Words of a fixed width: SeedSequence takes [a + b * 2^32] and [a, b] for the same.
        entropy = np.array([*seed.tolist(), stream], np.uint64).view(np.uint32)
        words = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
        self._words, self._device, self._width = words, device, width
        self._precise = torch.float32 if device.type == "mps" else torch.float64  # which has no other
        self._generator = None if device.type == "cpu" else torch.Generator(device)
        # Blocks side by side share a panel: the last one is kept.
        self._last: tuple[object, Tensor] = (None, torch.empty(0))

    def uniform(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """A block of draws from [0, 1)."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        block = torch.empty(height, width, dtype=dtype, device=self._device)
        for left in range(columns.start // self._width * self._width, columns.stop if height else 0, self._width):
            low, high = max(left, columns.start), min(left + self._width, columns.stop)
            panel = self._kept_panel(left, rows, dtype)
            block[:, low - columns.start : high - columns.start] = panel[:, low - left : high - left]
        return block

    def exponential(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """A block of draws from the exponential distribution, accurate near 0."""
        # Uniform draws in float32 are multiples of 2^-24, too coarse for the smallest of a million exponentials.
        uniform = self.uniform(rows, columns, self._precise).to(dtype)
        return uniform.clamp_(max=1 - torch.finfo(dtype).eps).neg_().log1p_().neg_()

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
        """The columns from ``left`` on, a whole panel of them."""
        if self._generator is not None:
            return self._accelerator_panel(self._generator, left, rows, dtype)
        # A step of Philox makes 256 bits, for 8 draws in float32 or 4 in float64.
        bits = 32 if dtype == torch.float32 else 64
        counter = np.array([rows.start * self._width * bits // 256, left, 0, 0], np.uint64)
        source = np.random.Generator(np.random.Philox(key=self._words, counter=counter))
        as_numpy: Any = np.float32 if dtype == torch.float32 else np.float64
        return torch.from_numpy(source.random((rows.stop - rows.start, self._width), dtype=as_numpy))

    def _accelerator_panel(self, generator: torch.Generator, left: int, rows: slice, dtype: torch.dtype) -> Tensor:
        """The same from parts of a fixed number of rows, each with a seed of its own."""
        top = rows.start // PANEL_ROWS
        parts = []
        for number in range(top, -(-rows.stop // PANEL_ROWS)):
            generator.manual_seed((int(self._words[0]) + left // self._width * SEED_STRIDE + number) % 2**63)
            parts.append(torch.rand(PANEL_ROWS, self._width, generator=generator, dtype=dtype, device=self._device))
        return torch.cat(parts)[rows.start - top * PANEL_ROWS : rows.stop - top * PANEL_ROWS]


def random_order(size: int, seed: Tensor, stream: int) -> Tensor:
    """(size,) int64, a random order, on the host."""
    draws = DrawTable(seed, torch.device("cpu"), stream=stream).uniform(
        slice(0, -(-size // PANEL)), slice(0, PANEL), torch.float64
    )
    return draws.flatten()[:size].argsort()
