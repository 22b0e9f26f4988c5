"""`normalized_rows` and its gradient as one Triton kernel each; imported on first use, since Triton need not be installed.

A program computes a few samples, both views of each if there are two. A row with NaN or infinity becomes NaN.

Shapes: B samples, V views, D features; a tile is (SAMPLES, WIDTH), where WIDTH is the power of two from D on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MODES = {"none": 0, "ball": 1, "sphere": 2}
HALF = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _divided(z, MODE: tl.constexpr, OPERAND: tl.constexpr):
    """Rows of a tile divided by their divisors, in the precision of operands, and the divisors, (SAMPLES,)."""
    largest = tl.max(tl.abs(z), 1)
    safe = tl.where(largest > 0, largest, 1.0)
    scaled = z / safe[:, None]  # squares of very large or small entries would over- or underflow
    length = tl.sqrt(tl.sum(scaled * scaled, 1)) * largest
    divisor = tl.full(length.shape, 1.0, tl.float32)
    if MODE == 1:
        divisor = tl.where(length > 1, length, 1.0)
    if MODE == 2:
        divisor = tl.where(length > 1.1754943508222875e-38, length, 1.1754943508222875e-38)
        divisor = tl.where(largest > 0, divisor, float("inf"))
    if MODE > 0:
        divisor = tl.where(tl.sum(z * 0.0, 1) == 0, divisor, float("nan"))
    return (z / divisor[:, None]).to(OPERAND), divisor


@triton.jit
def _forward(
    Z1, Z2, ROWS, HALF, POSITIVE, DIVISOR, stride1, stride2, B, D,
    PAIR: tl.constexpr, MODE: tl.constexpr, OPERAND: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Rows, similarity of the views and divisors of SAMPLES samples; without PAIR, of single rows.

    If HALF is given, it receives the rows in half precision.
    """
    sample = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    d, inside = tl.arange(0, WIDTH)[None, :], sample < B
    mask = inside[:, None] & (d < D)
    views: tl.constexpr = 2 if PAIR else 1
    first = tl.load(Z1 + sample[:, None] * stride1 + d, mask=mask, other=0.0).to(tl.float32)
    rounded, divisor = _divided(first, MODE, OPERAND)
    a, place = rounded.to(tl.float32), (sample * views)[:, None] * D + d
    tl.store(ROWS + place, a, mask=mask)
    if HALF is not None:
        tl.store(HALF + place, rounded, mask=mask)
    tl.store(DIVISOR + sample * views, divisor, mask=inside)
    if PAIR:
        second = tl.load(Z2 + sample[:, None] * stride2 + d, mask=mask, other=0.0).to(tl.float32)
        rounded, divisor = _divided(second, MODE, OPERAND)
        b = rounded.to(tl.float32)
        tl.store(ROWS + place + D, b, mask=mask)
        if HALF is not None:
            tl.store(HALF + place + D, rounded, mask=mask)
        tl.store(DIVISOR + sample * 2 + 1, divisor, mask=inside)
        tl.store(POSITIVE + sample, tl.sum(tl.where(d < D, a * b, 0.0), 1), mask=inside)


@triton.jit
def _orthogonal(total, row, divisor, MODE: tl.constexpr):
    """The component of a gradient orthogonal to the row, divided by the divisor; the gradient itself for an unscaled row."""
    if MODE == 0:
        return total
    along = tl.sum(total * row, 1)
    if MODE == 1:
        along = tl.where(divisor > 1, along, 0.0)
    return (total - along[:, None] * row) / divisor[:, None]


@triton.jit
def _backward(
    GRAD, GRAD_POSITIVE, ROWS, DIVISOR, OUT1, OUT2, B, D,
    PAIR: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, MODE: tl.constexpr,
    SAMPLES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of the views that are wanted, of SAMPLES samples."""
    sample = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    d, inside = tl.arange(0, WIDTH)[None, :], sample < B
    mask = inside[:, None] & (d < D)
    views: tl.constexpr = 2 if PAIR else 1
    place, out = (sample * views)[:, None] * D + d, sample[:, None] * D + d
    a = tl.load(ROWS + place, mask=mask, other=0.0)
    if PAIR:
        b = tl.load(ROWS + place + D, mask=mask, other=0.0)
        weight = tl.load(GRAD_POSITIVE + sample, mask=inside, other=0.0)[:, None]
    if FIRST:
        total = tl.load(GRAD + place, mask=mask, other=0.0)
        if PAIR:
            total += weight * b
        divisor = tl.load(DIVISOR + sample * views, mask=inside, other=1.0)
        tl.store(OUT1 + out, _orthogonal(total, a, divisor, MODE), mask=mask)
    if SECOND:
        total = tl.load(GRAD + place + D, mask=mask, other=0.0) + weight * a
        divisor = tl.load(DIVISOR + sample * 2 + 1, mask=inside, other=1.0)
        tl.store(OUT2 + out, _orthogonal(total, b, divisor, MODE), mask=mask)


def tile(width: int) -> tuple[dict[str, int], int]:
    """Samples and width of a tile, and warps of a program; not measured on a card: a row per warp up to 128 features."""
    power = triton.next_power_of_2(width)
    shape = {"SAMPLES": max(1, 512 // power), "WIDTH": power}
    return shape, 8 if power > 2048 else 4


def normalized_rows(
    z1: Tensor, z2: Tensor | None, normalize: str, operand: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (B * V, D), inner products of pairs (B, 1) or (B, 0), rows in half precision or empty, and divisors (B, V, 1)."""
    if z2 is None and z1.dim() == 3 and len(z1) == 2:
        z1, z2 = z1.unbind()
    size, width = z1.shape[-2:]
    views = 2 if z2 is not None else len(z1) if z1.dim() == 3 else 1
    if views != 2:  # single rows, in the order of the result
        z1 = z1.transpose(0, 1).reshape(-1, width) if views > 1 else z1.reshape(-1, width)
    first, second = _rows(z1), _rows(z1 if z2 is None else z2)
    rows = torch.empty(views * size, width, dtype=torch.float32, device=z1.device)
    in_half = torch.empty_like(rows, dtype=operand) if operand in HALF else None
    positive, divisor = rows.new_empty(size, 1 if views == 2 else 0), rows.new_empty(size, views, 1)
    programs, (shape, warps) = len(first), tile(width)
    with torch.cuda.device_of(rows):  # Triton launches on the current device
        _forward[(triton.cdiv(programs, shape["SAMPLES"]),)](
            first, second, rows, in_half, positive, divisor, first.stride(0), second.stride(0), programs, width,
            PAIR=z2 is not None, MODE=MODES[normalize], OPERAND=HALF.get(operand, tl.float32), **shape, num_warps=warps,
        )  # fmt: skip
    return rows, positive, rows.new_empty(0) if in_half is None else in_half, divisor


def normalized_rows_backward(
    grad: Tensor, grad_positive: Tensor, rows: Tensor, divisor: Tensor, normalize: str, views: list[int], dtype: torch.dtype
) -> Tensor:
    """Gradients of the features of some views, (views, B, D), in a dtype."""
    (size, number, _), width = divisor.shape, rows.shape[1]
    out = rows.new_empty(len(views), size, width, dtype=dtype)
    (shape, warps), pair = tile(width), number == 2
    by_row = out if pair or number == 1 else out.new_empty(size * number, width)
    last = by_row[-1] if pair else by_row
    programs, wanted = size if pair else size * number, [0 in views, 1 in views] if pair else [True, False]
    with torch.cuda.device_of(rows):
        _backward[(triton.cdiv(programs, shape["SAMPLES"]),)](
            grad.contiguous(), grad_positive.contiguous(), rows, divisor, by_row, last, programs, width,
            PAIR=pair, FIRST=wanted[0], SECOND=wanted[1], MODE=MODES[normalize], **shape, num_warps=warps,
        )  # fmt: skip
    return out if by_row is out else by_row.view(size, number, width).transpose(0, 1)[views].contiguous()


def _rows(z: Tensor) -> Tensor:
    """The tensor with the features of a row next to each other."""
    return z if z.stride(-1) == 1 else z.contiguous()
