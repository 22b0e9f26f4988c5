"""Kernels of the backward pass. The flags are explained in `kernels.py`."""

import triton
import triton.language as tl

from contrastive_zoo.pairwise.fused.device import (
    CHANGING,
    counted_pairs,
    load_ids,
    load_rows,
    shift_of,
    tile_of,
    tiles_of,
)
from contrastive_zoo.pairwise.fused.functions import LIFT, LOGSUMEXP, add_product, load_side, share_exponentials, slopes_of


@triton.jit
def _weight(GRAD, SUMS, SCALE, at, size, step, entries, rows, SCALES: tl.constexpr):
    """Upstream gradients times scales; 0 for rows without keys."""
    inside = at < size
    grad = tl.load(GRAD + at * step, mask=inside, other=0.0).to(tl.float32)
    if SUMS is not None:
        grad = tl.where(tl.load(SUMS + at, mask=inside, other=-float("inf")) == -float("inf"), 0.0, grad)
    if SCALES == 2:
        scale = tl.load(SCALE + at % rows, mask=inside, other=0.0).to(tl.float32)
    elif SCALES == 1:
        scale = tl.load(SCALE + at // entries, mask=inside, other=0.0).to(tl.float32)
    else:
        scale = (at * 0).to(tl.float32) + SCALE
    return grad * scale


@triton.jit(do_not_specialize=["size", "step", "rows", "entries", "other_size", "other_step", "other_entries"])
def weigh(
    GRAD, SUMS, WEIGHTS, OTHER_GRAD, OTHER_SUMS, OTHER_WEIGHTS, SCALE, TOP,
    size, step, rows, entries, other_size, other_step, other_entries, SCALES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights of rows, and of keys: upstream gradients times scales, divided by the largest of both, which is TOP.

    One program, so that the largest weight is known without a second launch.
    """
    top = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        top = tl.maximum(top, tl.abs(_weight(GRAD, SUMS, SCALE, at, size, step, entries, rows, SCALES)))
    for start in range(0, other_size, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        weight = _weight(OTHER_GRAD, OTHER_SUMS, SCALE, at, other_size, other_step, other_entries, rows, SCALES)
        top = tl.maximum(top, tl.abs(weight))
    largest = tl.max(top, 0)
    tl.store(TOP, largest)
    divisor = tl.where(largest > 0, largest, 1.0)
    for start in range(0, size, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        weight = _weight(GRAD, SUMS, SCALE, at, size, step, entries, rows, SCALES)
        tl.store(WEIGHTS + at, weight / divisor, mask=at < size)
    for start in range(0, other_size, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        weight = _weight(OTHER_GRAD, OTHER_SUMS, SCALE, at, other_size, other_step, other_entries, rows, SCALES)
        tl.store(OTHER_WEIGHTS + at, weight / divisor, mask=at < other_size)


@triton.jit
def _descend(
    x, i, ids, total, offset, Y, IDS_Y, SCALE, LEVEL, ERRORS, WEIGHTS, OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS,
    i0, g, sets, rows, columns, y_row, group, squared_bound, first, both, every, s0, e0, s1, e1, parameter, floor, step,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, IDS: tl.constexpr,
    EQUAL: tl.constexpr, SCALES: tl.constexpr, PART: tl.constexpr, K: tl.constexpr, TERM: tl.constexpr, SHARED: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """Add the products of slopes and rows of the other side, and sums of slopes, over the tiles of a block of rows."""
    scale, level, weight = load_side(LEVEL, ERRORS, WEIGHTS, SCALE, g * rows + i, i, rows, 0, step, SCALES, TERM)
    for t in range(0, every):
        start, end = tile_of(t, first, both, i0, columns, s0, e0, s1, e1, BN, PART, EQUAL)
        j = start + tl.arange(0, BN)
        y = load_rows(Y, j, end, y_row, 0, D, WIDTH)
        other_ids = load_ids(IDS_Y, j, end, group, IDS)
        similarity = tl.dot(x, tl.trans(y), input_precision=PRECISION)
        slopes = tl.zeros(similarity.shape, tl.float32)
        for k in tl.static_range(K):
            z = g + k * sets
            if K > 1:
                scale, level, weight = load_side(LEVEL, ERRORS, WEIGHTS, SCALE, z * rows + i, i, rows, k, step, SCALES, TERM)
            other_scale, other_level, other_weight = load_side(
                OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, SCALE, z * columns + j, j, columns, k, step, SCALES, TERM
            )
            shift = tl.max(shift_of(scale, squared_bound)[0], 0)
            slopes += slopes_of(
                similarity, scale, level, weight, other_scale, other_level, other_weight, shift, parameter, floor,
                WEIGHTS is not None, OTHER_WEIGHTS is not None, SHARED, TERM,
            )  # fmt: skip
        counted = counted_pairs(i, j, end, ids, other_ids, s0, e0, s1, e1, IDS, EQUAL, PART)
        slopes = tl.where(counted, slopes, 0.0)
        if OFFSET:
            offset += tl.sum(slopes, 1)
        total = add_product(slopes, y, total, PRECISION, TERM)
    return total, offset


@triton.jit(do_not_specialize=CHANGING)
def gradients(
    X, Y, IDS_X, IDS_Y, SCALE, LEVEL, ERRORS, WEIGHTS, OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, TOP, OUT, OFFSETS,
    rows, columns, sets, x_set, x_row, y_set, y_row, group, squared_bound, s0, e0, s1, e1, parameter, floor, step,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, IDS: tl.constexpr,
    EQUAL: tl.constexpr, SCALES: tl.constexpr, PART: tl.constexpr, K: tl.constexpr, TERM: tl.constexpr,
):  # fmt: skip
    """Gradients of rows, (G, N, D), through the sums of rows (if WEIGHTS is given) and of the other side (if OTHER_WEIGHTS is).

    If OFFSETS is given, it receives the gradients of the squared lengths of rows.
    """
    i0, g = tl.program_id(0) * BM, tl.program_id(1).to(tl.int64)
    i = i0 + tl.arange(0, BM)
    x = load_rows(X + g * x_set, i, rows, x_row, 0, D, WIDTH)
    ids = load_ids(IDS_X, i, rows, group, IDS)
    total, offset = tl.zeros([BM, WIDTH], tl.float32), tl.zeros([BM], tl.float32)
    first, both, every = tiles_of(i0, rows, columns, IDS_X, IDS_Y, s0, e0, s1, e1, BM, BN, PART, EQUAL)
    # A loop for each case: Triton cannot pipeline a loop with a branch between its two products.
    shared = False
    if (TERM == LOGSUMEXP) & (WEIGHTS is not None) & (OTHER_WEIGHTS is not None) & (SCALES != 2):
        shared = share_exponentials(SCALE, i, rows, squared_bound, SCALES, K)
    if shared:
        total, offset = _descend(
            x, i, ids, total, offset, Y + g * y_set, IDS_Y, SCALE, LEVEL, ERRORS, WEIGHTS,
            OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, i0, g, sets, rows, columns, y_row, group, squared_bound,
            first, both, every, s0, e0, s1, e1, parameter, floor, step,
            D, WIDTH, BN, PRECISION, IDS, EQUAL, SCALES, PART, K, TERM, True, OFFSETS is not None,
        )  # fmt: skip
    else:
        total, offset = _descend(
            x, i, ids, total, offset, Y + g * y_set, IDS_Y, SCALE, LEVEL, ERRORS, WEIGHTS,
            OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, i0, g, sets, rows, columns, y_row, group, squared_bound,
            first, both, every, s0, e0, s1, e1, parameter, floor, step,
            D, WIDTH, BN, PRECISION, IDS, EQUAL, SCALES, PART, K, TERM, False, OFFSETS is not None,
        )  # fmt: skip
    factor = tl.load(TOP) / LIFT
    d = tl.arange(0, WIDTH)
    at = OUT + (g * rows + i)[:, None] * D + d[None, :]
    tl.store(at, total * factor, mask=(i < rows)[:, None] & (d < D)[None, :])
    if OFFSETS is not None:
        # The weights are those of the similarities, which count -2 times in a squared distance.
        tl.store(OFFSETS + g * rows + i, offset * factor * -0.5, mask=i < rows)
