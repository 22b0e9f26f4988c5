"""`philox.uniform` as one Triton kernel; imported on first use, since Triton need not be installed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from contrastive_zoo.samplers import philox

STEPS = tl.constexpr(2**philox.STEP_BITS)
# Rows and calls of a program.
ROWS, CALLS = 8, 128


@triton.jit
def words(SEED, row, call, stream):
    """The four words of each call, uint32; see `philox.words`."""
    seed, step = tl.load(SEED), tl.load(SEED + 1)
    last = (step >> 32) % STEPS + (step * 0 + stream) * STEPS
    nothing = row * 0 + call * 0
    return tl.philox(seed, nothing + row, nothing + call, nothing + step.to(tl.int32), nothing + last.to(tl.int32))


@triton.jit(do_not_specialize=["row", "column", "rows", "columns", "stream"])
def draws(
    SEED, OUT, row, column, rows, columns, stream,
    VALUES: tl.constexpr, ROWS: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    """A block of draws, VALUES from each call."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    call = column // VALUES + tl.program_id(1) * CALLS + tl.arange(0, CALLS)
    first, second, third, fourth = words(SEED, (row + i).to(tl.int32)[:, None], call.to(tl.int32)[None, :], stream)
    drawn = first, second, third, fourth
    for k in tl.static_range(VALUES):
        j = call * VALUES + k - column
        if VALUES == 2:
            value = ((drawn[2 * k] >> 5).to(tl.int64) * 67108864 + (drawn[2 * k + 1] >> 6).to(tl.int64)).to(
                tl.float64
            ) * 2.0**-53
        else:
            value = (drawn[k] >> 8).to(tl.float32) * 2.0**-24
        inside = (i < rows)[:, None] & ((j >= 0) & (j < columns))[None, :]
        tl.store(OUT + i.to(tl.int64)[:, None] * columns + j[None, :], value, mask=inside)


def uniform(seed: Tensor, stream: int, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
    """See `philox.uniform`."""
    height, width, values = rows.stop - rows.start, columns.stop - columns.start, philox.calls(dtype)
    out = torch.empty(height, width, dtype=dtype, device=seed.device)
    if out.numel():
        calls = -(-columns.stop // values) - columns.start // values
        with torch.cuda.device_of(out):  # Triton launches on the current device
            draws[(triton.cdiv(height, ROWS), triton.cdiv(calls, CALLS))](
                seed, out, rows.start, columns.start, height, width, stream,
                VALUES=values, ROWS=ROWS, CALLS=CALLS, num_warps=4,
            )  # fmt: skip
    return out
