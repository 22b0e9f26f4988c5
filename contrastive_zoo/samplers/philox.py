"""Random draws on accelerators: Philox of a seed, a step and a position, so that the host neither draws nor waits.

A call of Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) maps a key, the seed, and a
counter to four words of 32 bits. The counter is (row, call in the row, step, step // 2^32 and the stream). Seed and step are
read on the device, so replays of a CUDA graph draw anew when the step advances. Triton kernels give the same numbers bit for
bit.

Shapes: R rows, C columns of a block.
"""

from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.devices import refuses_kernels

MASK = 2**32 - 1
# Bits of the last word of a counter that are left to the step.
STEP_BITS = 24
ROUNDS = 10
# Multipliers of the two halves of a counter, and what is added to the halves of the key after each round.
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
RAISES = 0x9E3779B9, 0xBB67AE85


def uniform(seed: Tensor, stream: int, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
    """(R, C) draws from [0, 1), with 24 random bits in float32 and 53 in float64.

    Args:
        seed: (2,) int64 seed and step, on the device of the draws.
        stream: From 0 to 127; draws of different streams are independent.
        rows: Rows of the table of draws.
        columns: Columns of the table of draws.
        dtype: float32 or float64.
    """
    if not refuses_kernels(seed.device):
        return _kernels().uniform(seed, stream, rows, columns, dtype)
    values = calls(dtype)
    first = columns.start // values
    row, call = (
        torch.arange(start, stop, device=seed.device)
        for start, stop in ((rows.start, rows.stop), (first, max(first, -(-columns.stop // values))))
    )
    drawn = words(seed, row[:, None], call, stream)
    if dtype == torch.float64:
        drawn = [(high >> 5) * 2**26 + (low >> 6) for high, low in (drawn[:2], drawn[2:])]
        fractions = torch.stack(drawn, -1).flatten(1).to(dtype) * 2.0**-53
    else:
        fractions = (torch.stack(drawn, -1).flatten(1) >> 8).to(dtype) * 2.0**-24
    start = columns.start - first * values
    return fractions[:, start : start + columns.stop - columns.start]


def calls(dtype: torch.dtype) -> int:
    """Number of draws from one call of Philox."""
    return 2 if dtype == torch.float64 else 4


def words(seed: Tensor, row: Tensor, call: Tensor, stream: int) -> list[Tensor]:
    """The four words of each call, as int64 from 0 to 2^32 - 1; rows and calls are broadcast."""
    key, step = seed.unbind()
    high = (step >> 32 & 2**STEP_BITS - 1) | (stream << STEP_BITS)
    left, below, right, above = torch.broadcast_tensors(row & MASK, call & MASK, step & MASK, high)
    keys = key & MASK, key >> 32 & MASK
    for _ in range(ROUNDS):
        # A product of two words wraps around in int64, and has the right bits.
        first, second = left * MULTIPLIERS[0], right * MULTIPLIERS[1]
        left, below = (second >> 32 & MASK) ^ below ^ keys[0], second & MASK
        right, above = (first >> 32 & MASK) ^ above ^ keys[1], first & MASK
        keys = keys[0] + RAISES[0] & MASK, keys[1] + RAISES[1] & MASK
    return [left, below, right, above]


def _kernels() -> Any:
    # Imported here, because Triton may be missing and takes long to import.
    from contrastive_zoo.samplers import philox_triton

    return philox_triton
