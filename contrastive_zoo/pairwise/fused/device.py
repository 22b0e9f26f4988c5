"""What the kernels share: loads of rows, ids and scales, the tiles to visit, the pairs that count.

Rows `i` belong to the side that a program computes for, rows `j` to the other side.
"""

import triton
import triton.language as tl

from contrastive_zoo.pairwise.fused import BOUNDED_RANGE

# Start of a running maximum: a difference with it is never NaN, as one with an infinity could be.
LOWEST = tl.constexpr(-1.0e30)
RANGE = tl.constexpr(BOUNDED_RANGE)
# Numbers that change from batch to batch and must not cause a compilation.
CHANGING = ["rows", "columns", "group", "s0", "e0", "s1", "e1", "step"]


@triton.jit
def load_rows(X, i, end, stride, start, D: tl.constexpr, WIDTH: tl.constexpr):
    """A chunk of the features of rows before the end, padded with zeros; offsets have 64 bits."""
    d = start + tl.arange(0, WIDTH)
    mask = (i < end)[:, None]
    if D % WIDTH:
        mask = mask & (d < D)[None, :]
    return tl.load(X + i.to(tl.int64)[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def similarities(
    x, X, Y, i, j, rows, end, x_row, y_row,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Similarities of a tile: of rows x that fit into a chunk, or chunk by chunk."""
    if D <= WIDTH:
        found = tl.dot(x, tl.trans(load_rows(Y, j, end, y_row, 0, D, WIDTH)), input_precision=PRECISION)
    else:
        found = tl.zeros([BM, BN], tl.float32)
        for start in range(0, D, WIDTH):
            a, b = load_rows(X, i, rows, x_row, start, D, WIDTH), load_rows(Y, j, end, y_row, start, D, WIDTH)
            found = tl.dot(a, tl.trans(b), found, input_precision=PRECISION)
    return found


@triton.jit
def load_ids(ids, i, end, group, IDS: tl.constexpr):
    """The id of each row."""
    if IDS == 2:
        found = tl.load(ids + i, mask=i < end, other=0)
    elif IDS == 1:
        found = i // group
    else:
        found = i
    return found


@triton.jit
def load_scale(SCALE, i, end, k, SCALES: tl.constexpr):
    """The scale of each row."""
    if SCALES == 2:
        found = tl.load(SCALE + i, mask=i < end, other=0.0).to(tl.float32)
    elif SCALES == 1:
        found = tl.load(SCALE + k + i * 0).to(tl.float32)
    else:
        found = (i * 0).to(tl.float32) + SCALE
    return found


@triton.jit
def shift_of(scale, squared_bound):
    """An upper bound on the logits of each row, and whether it can replace their maximum."""
    bound = tl.abs(scale) * squared_bound
    return bound, 2.0 * tl.max(bound, 0) < RANGE


@triton.jit
def _in_strips(i, s0, e0, s1, e1):
    return ((i >= s0) & (i < e0)) | ((i >= s1) & (i < e1))


@triton.jit
def counted_pairs(i, j, end, ids, other_ids, s0, e0, s1, e1, IDS: tl.constexpr, EQUAL: tl.constexpr, PART: tl.constexpr):
    """Mask of the pairs that count."""
    counted = (j < end)[None, :] & (i >= 0)[:, None]
    if IDS:
        if EQUAL:
            counted = counted & (ids[:, None] == other_ids[None, :]) & (i[:, None] != j[None, :])
        else:
            counted = counted & (ids[:, None] != other_ids[None, :])
    if PART == 1:
        counted = counted & _in_strips(tl.minimum(i[:, None], j[None, :]), s0, e0, s1, e1)
    if PART == 2:
        counted = counted & _in_strips(i, s0, e0, s1, e1)[:, None]
    return counted


@triton.jit
def _first(ids, size, value, AFTER: tl.constexpr):
    """Position of the first of ascending ids that is at least some value, or greater (if AFTER)."""
    low, high = size * 0, size
    for _ in range(0, 32):
        middle = (low + high) // 2
        found = tl.load(ids + middle, mask=low < high, other=value)
        less = (found <= value if AFTER else found < value) & (low < high)
        low, high = tl.where(less, middle + 1, low), tl.where(less | (low >= high), high, middle)
    return low


@triton.jit
def tiles_of(
    i0, rows, columns, ids, other_ids, s0, e0, s1, e1,
    BM: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr, EQUAL: tl.constexpr,
):  # fmt: skip
    """Number of tiles of a block of rows: those that end with the first strip, with the second strip, and all.

    If ids ascend, the first row of the other side that has an id of the block, instead of the first number.
    """
    first, both, every = i0 * 0, i0 * 0, tl.cdiv(columns, BN)
    if EQUAL == 2:
        last = tl.minimum(i0 + BM, rows) - 1
        first = _first(other_ids, columns, tl.load(ids + i0), False)
        every = tl.cdiv(_first(other_ids, columns, tl.load(ids + last), True) - first, BN)
    if PART:
        end = tl.minimum(i0 + BM, rows)
        inside = (tl.minimum(e0, end) > tl.maximum(s0, i0)) | (tl.minimum(e1, end) > tl.maximum(s1, i0))
        if PART == 2:
            every = tl.where(inside, every, 0)
        else:
            # PART 1 needs, of the rows before the block, those in strips; and if the block is in a strip, all rows from it on.
            limit = i0 if PART == 1 else columns
            first = tl.cdiv(tl.maximum(tl.minimum(e0, limit) - s0, 0), BN)
            both = first + tl.cdiv(tl.maximum(tl.minimum(e1, limit) - s1, 0), BN)
            every = both
            if PART == 1:
                every = both + tl.where(inside, tl.cdiv(columns - i0, BN), 0)
    return first, both, every


@triton.jit
def tile_of(t, first, both, i0, columns, s0, e0, s1, e1, BN: tl.constexpr, PART: tl.constexpr, EQUAL: tl.constexpr):
    """First row of the other side in tile t, and the end of the rows that the tile may reach into."""
    start, end = t * BN, columns
    if EQUAL == 2:
        start = first + t * BN
    if (PART == 1) | (PART == 3):
        limit = i0 if PART == 1 else columns
        start = tl.where(t < first, s0 + t * BN, tl.where(t < both, s1 + (t - first) * BN, i0 + (t - both) * BN))
        end = tl.where(t < first, tl.minimum(e0, limit), tl.where(t < both, tl.minimum(e1, limit), columns))
    return start, end
