"""The kernels; launched by `launch.py`, derived in `../README.md`.

A program computes for a block of rows `i` of one side, and reads blocks of rows `j` of the other side. Rows and keys exchange
roles by exchanging arguments. Everything between the products is float32.

Shapes: G sets, K scales, N rows, M rows of the other side, D features. Results of rows are (K, G, N).

Flags that the compiler knows:

* IDS: 0 no ids, 1 the id of a row is its position // group, 2 ids are loaded.
* EQUAL: pairs of different rows with equal ids count, instead of pairs with different ids.
* SCALES: 0 one number, 1 a tensor with one scale per `k`, 2 a tensor with one scale per row.
* PART: which pairs count, given two strips of rows, from s0 to e0 and from s1 to e1: 0 all, 1 those whose smaller row is in a
  strip, 2 those whose row i is, 3 those whose row j is.
* PRECISION: how float32 operands are multiplied.
* D, WIDTH: features, and the next power of two from 16 on.
* BM, BN: rows of the two sides in a tile.
"""

import triton
import triton.language as tl

from contrastive_zoo.pairwise.fused.device import (
    LOWEST,
    counted_pairs,
    load_ids,
    load_rows,
    load_scale,
    shift_of,
    tile_of,
    tiles_of,
)

# A factor of probabilities in the second product: float16 has no normal numbers below 2^-14.
LIFT = tl.constexpr(4096.0)
# Numbers that change from batch to batch and must not cause a compilation.
CHANGING = ["rows", "columns", "group", "s0", "e0", "s1", "e1"]


@triton.jit(do_not_specialize=CHANGING)
def log_sums(
    X, Y, IDS_X, IDS_Y, SCALE, TOTALS, WEIGHTED, OUT, ERRORS, MEANS,
    rows, columns, sets, x_set, x_row, y_set, y_row, group, squared_bound, s0, e0, s1, e1,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    IDS: tl.constexpr, EQUAL: tl.constexpr, SCALES: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of rows over the other side, and, if MEANS is given, mean similarities under the softmax.

    If ERRORS is given, it receives the rounding errors of the log-sum-exps. Probabilities are exponentials of differences from
    log-sum-exps, and in float32 a log-sum-exp of 200 is off by 1e-5.

    Logits with a small bound are shifted by the bound, others by their running maximum. If TOTALS is given, `pair_sums` has
    added the exponentials of bounded logits there, and only rows of other logits visit tiles.
    """
    i0, z = tl.program_id(0) * BM, tl.program_id(1)
    k, g = z // sets, (z % sets).to(tl.int64)
    i = i0 + tl.arange(0, BM)
    at = z.to(tl.int64) * rows + i
    scale = load_scale(SCALE, i, rows, k, SCALES)
    largest, bounded = shift_of(scale, squared_bound)
    if not bounded:
        largest = largest * 0 + LOWEST
    total, weighted = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    first, both, every = tiles_of(i0, rows, columns, s0, e0, s1, e1, BM, BN, PART)
    if TOTALS is not None:
        added = i < tl.where(bounded, rows, 0)
        every = tl.where(bounded, 0, every)
        total = tl.load(TOTALS + at, mask=added, other=0.0)
        if MEANS is not None:
            weighted = tl.load(WEIGHTED + at, mask=added, other=0.0)
    x = load_rows(X + g * x_set, i, rows, x_row, D, WIDTH)
    ids = load_ids(IDS_X, i, rows, group, IDS)
    for t in range(0, every):
        start, end = tile_of(t, first, both, i0, columns, s0, e0, s1, e1, BN, PART)
        j = start + tl.arange(0, BN)
        y = load_rows(Y + g * y_set, j, end, y_row, D, WIDTH)
        other_ids = load_ids(IDS_Y, j, end, group, IDS)
        similarity = tl.dot(x, tl.trans(y), input_precision=PRECISION)
        counted = counted_pairs(i, j, end, ids, other_ids, s0, e0, s1, e1, IDS, EQUAL, PART)
        logits = tl.where(counted, similarity * scale[:, None], -float("inf"))
        if not bounded:
            before = largest
            largest = tl.maximum(before, tl.max(logits, 1))
            total *= tl.exp(before - largest)
            weighted *= tl.exp(before - largest)
        e = tl.exp(logits - largest[:, None])
        total += tl.sum(e, 1)
        if MEANS is not None:
            weighted += tl.sum(e * similarity, 1)
    some = tl.where(total > 0, total, 1.0)
    logarithm = tl.log(some)
    found = largest + logarithm
    tl.store(OUT + at, tl.where(total > 0, found, -float("inf")), mask=i < rows)
    if ERRORS is not None:
        tl.store(ERRORS + at, tl.where(total > 0, logarithm - (found - largest), 0.0), mask=i < rows)
    if MEANS is not None:
        tl.store(MEANS + at, weighted / some, mask=i < rows)


@triton.jit(do_not_specialize=CHANGING)
def pair_sums(
    X, Y, IDS_X, IDS_Y, SCALE, TOTALS, WEIGHTED, COLUMN_TOTALS, COLUMN_WEIGHTED,
    rows, columns, sets, x_set, x_row, y_set, y_row, group, squared_bound, s0, e0, s1, e1,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    IDS: tl.constexpr, EQUAL: tl.constexpr, SCALES: tl.constexpr, SELF: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Add the exponentials of bounded logits to sums of both sides, and the weighted similarities if WEIGHTED is given.

    A program visits RUN tiles. If rows are their own keys (SELF), only pairs i < j are visited, and both sums are the same.
    """
    block, z = tl.program_id(0), tl.program_id(1)
    k, g = z // sets, (z % sets).to(tl.int64)
    of_first = tl.cdiv(e0 - s0, BM)
    i0 = tl.where(block < of_first, s0 + block * BM, s1 + (block - of_first) * BM)
    last = tl.where(block < of_first, e0, e1)
    i = i0 + tl.arange(0, BM)
    scale = load_scale(SCALE, i, last, k, SCALES)
    bound, bounded = shift_of(scale, squared_bound)
    origin = (i0 if SELF else i0 * 0) + tl.program_id(2) * (RUN * BN)
    tiles = tl.where(bounded & (origin < columns), tl.minimum(tl.cdiv(columns - origin, BN), RUN), 0)
    if tiles > 0:
        total, weighted = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
        x = load_rows(X + g * x_set, i, last, x_row, D, WIDTH)
        ids = load_ids(IDS_X, i, last, group, IDS)
        for t in range(0, tiles):
            j = origin + t * BN + tl.arange(0, BN)
            at = z.to(tl.int64) * columns + j
            y = load_rows(Y + g * y_set, j, columns, y_row, D, WIDTH)
            other_ids = load_ids(IDS_Y, j, columns, group, IDS)
            similarity = tl.dot(x, tl.trans(y), input_precision=PRECISION)
            counted = counted_pairs(i, j, columns, ids, other_ids, s0, e0, s1, e1, IDS, EQUAL, 0) & (i < last)[:, None]
            if SELF:
                counted = counted & (i[:, None] < j[None, :])
            e = tl.where(counted, tl.exp(similarity * scale[:, None] - bound[:, None]), 0.0)
            total += tl.sum(e, 1)
            tl.atomic_add(COLUMN_TOTALS + at, tl.sum(e, 0), mask=j < columns, sem="relaxed")
            if WEIGHTED is not None:
                weighted += tl.sum(e * similarity, 1)
                tl.atomic_add(COLUMN_WEIGHTED + at, tl.sum(e * similarity, 0), mask=j < columns, sem="relaxed")
        tl.atomic_add(TOTALS + z.to(tl.int64) * rows + i, total, mask=i < last, sem="relaxed")
        if WEIGHTED is not None:
            tl.atomic_add(WEIGHTED + z.to(tl.int64) * rows + i, weighted, mask=i < last, sem="relaxed")


@triton.jit
def _weight(GRAD, SUMS, SCALE, at, size, step, entries, rows, SCALES: tl.constexpr):
    """Upstream gradients times scales; 0 for rows without keys."""
    inside = at < size
    grad = tl.load(GRAD + at * step, mask=inside, other=0.0).to(tl.float32)
    sums = tl.load(SUMS + at, mask=inside, other=-float("inf"))
    if SCALES == 2:
        scale = tl.load(SCALE + at % rows, mask=inside, other=0.0).to(tl.float32)
    elif SCALES == 1:
        scale = tl.load(SCALE + at // entries, mask=inside, other=0.0).to(tl.float32)
    else:
        scale = (at * 0).to(tl.float32) + SCALE
    return tl.where(sums == -float("inf"), 0.0, grad * scale)


@triton.jit(do_not_specialize=["size", "step", "rows", "entries", "other_size", "other_step"])
def weigh(
    GRAD, SUMS, WEIGHTS, OTHER_GRAD, OTHER_SUMS, OTHER_WEIGHTS, SCALE, TOP,
    size, step, rows, entries, other_size, other_step, SCALES: tl.constexpr, BLOCK: tl.constexpr,
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
        weight = _weight(OTHER_GRAD, OTHER_SUMS, SCALE, at, other_size, other_step, entries, rows, SCALES)
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
        weight = _weight(OTHER_GRAD, OTHER_SUMS, SCALE, at, other_size, other_step, entries, rows, SCALES)
        tl.store(OTHER_WEIGHTS + at, weight / divisor, mask=at < other_size)


@triton.jit
def _load_side(SUMS, ERRORS, WEIGHTS, SCALE, at, i, end, k, SCALES: tl.constexpr):
    """The scale, the log-sum-exp and the weight of each row; weights get the factors that probabilities lack."""
    sums = tl.load(SUMS + at, mask=i < end, other=0.0)
    error = tl.load(ERRORS + at, mask=i < end, other=0.0)
    weight = tl.load(WEIGHTS + at, mask=i < end, other=0.0) * LIFT * tl.exp(-error)
    return load_scale(SCALE, i, end, k, SCALES), tl.where(sums == -float("inf"), 0.0, sums), weight


@triton.jit
def _slopes(similarity, scale, sums, weight, other_scale, other_sums, other_weight, shift, SHARED: tl.constexpr):
    """Slopes of a tile through the sums of both sides; SHARED: one exponential, relative to a bound, serves both."""
    if SHARED:
        weights = (weight * tl.exp(shift - sums))[:, None] + (other_weight * tl.exp(shift - other_sums))[None, :]
        slopes = tl.exp(similarity * scale[:, None] - shift) * weights
    else:
        slopes = tl.exp(similarity * scale[:, None] - sums[:, None]) * weight[:, None]
        slopes += tl.exp(similarity * other_scale[None, :] - other_sums[None, :]) * other_weight[None, :]
    return slopes


@triton.jit
def _descend(
    x, i, ids, total, Y, IDS_Y, SCALE, SUMS, ERRORS, WEIGHTS, OTHER_SUMS, OTHER_ERRORS, OTHER_WEIGHTS,
    i0, g, sets, rows, columns, y_row, group, squared_bound, first, both, every, s0, e0, s1, e1,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, IDS: tl.constexpr,
    EQUAL: tl.constexpr, SCALES: tl.constexpr, PART: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Add the products of slopes and rows of the other side, over the tiles of a block of rows."""
    if SUMS is not None:
        scale, level, weight = _load_side(SUMS, ERRORS, WEIGHTS, SCALE, g * rows + i, i, rows, 0, SCALES)
    for t in range(0, every):
        start, end = tile_of(t, first, both, i0, columns, s0, e0, s1, e1, BN, PART)
        j = start + tl.arange(0, BN)
        y = load_rows(Y, j, end, y_row, D, WIDTH)
        other_ids = load_ids(IDS_Y, j, end, group, IDS)
        similarity = tl.dot(x, tl.trans(y), input_precision=PRECISION)
        slopes = tl.zeros(similarity.shape, tl.float32)
        for k in tl.static_range(K):
            z = g + k * sets
            if (SUMS is not None) & (K > 1):
                scale, level, weight = _load_side(SUMS, ERRORS, WEIGHTS, SCALE, z * rows + i, i, rows, k, SCALES)
            if OTHER_SUMS is not None:
                other_scale, other_level, other_weight = _load_side(
                    OTHER_SUMS, OTHER_ERRORS, OTHER_WEIGHTS, SCALE, z * columns + j, j, columns, k, SCALES
                )
            if OTHER_SUMS is None:
                slopes += tl.exp(similarity * scale[:, None] - level[:, None]) * weight[:, None]
            elif SUMS is None:
                slopes += tl.exp(similarity * other_scale[None, :] - other_level[None, :]) * other_weight[None, :]
            else:
                shift = tl.max(shift_of(scale, squared_bound)[0], 0)
                slopes += _slopes(similarity, scale, level, weight, other_scale, other_level, other_weight, shift, SHARED)
        counted = counted_pairs(i, j, end, ids, other_ids, s0, e0, s1, e1, IDS, EQUAL, PART)
        slopes = tl.where(counted, slopes, 0.0)
        total = tl.dot(slopes.to(y.dtype), y, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=CHANGING)
def gradients(
    X, Y, IDS_X, IDS_Y, SCALE, SUMS, ERRORS, WEIGHTS, OTHER_SUMS, OTHER_ERRORS, OTHER_WEIGHTS, TOP, OUT,
    rows, columns, sets, x_set, x_row, y_set, y_row, group, squared_bound, s0, e0, s1, e1,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    IDS: tl.constexpr, EQUAL: tl.constexpr, SCALES: tl.constexpr, PART: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Gradients of rows, (G, N, D), through the sums of rows (if SUMS is given) and of the other side (if OTHER_SUMS is)."""
    i0, g = tl.program_id(0) * BM, tl.program_id(1).to(tl.int64)
    i = i0 + tl.arange(0, BM)
    x = load_rows(X + g * x_set, i, rows, x_row, D, WIDTH)
    ids = load_ids(IDS_X, i, rows, group, IDS)
    total = tl.zeros([BM, WIDTH], tl.float32)
    first, both, every = tiles_of(i0, rows, columns, s0, e0, s1, e1, BM, BN, PART)
    # A loop for each case: Triton cannot pipeline a loop with a branch between its two products.
    shared = False
    if (SUMS is not None) & (OTHER_SUMS is not None) & (SCALES != 2):
        shared = True
        for k in tl.static_range(K):
            shared = shared & shift_of(load_scale(SCALE, i, rows, k, SCALES), squared_bound)[1]
    if shared:
        total = _descend(
            x, i, ids, total, Y + g * y_set, IDS_Y, SCALE, SUMS, ERRORS, WEIGHTS, OTHER_SUMS, OTHER_ERRORS, OTHER_WEIGHTS,
            i0, g, sets, rows, columns, y_row, group, squared_bound, first, both, every, s0, e0, s1, e1,
            D, WIDTH, BN, PRECISION, IDS, EQUAL, SCALES, PART, K, True,
        )  # fmt: skip
    else:
        total = _descend(
            x, i, ids, total, Y + g * y_set, IDS_Y, SCALE, SUMS, ERRORS, WEIGHTS, OTHER_SUMS, OTHER_ERRORS, OTHER_WEIGHTS,
            i0, g, sets, rows, columns, y_row, group, squared_bound, first, both, every, s0, e0, s1, e1,
            D, WIDTH, BN, PRECISION, IDS, EQUAL, SCALES, PART, K, False,
        )  # fmt: skip
    total *= tl.load(TOP) / LIFT
    d = tl.arange(0, WIDTH)
    at = OUT + (g * rows + i)[:, None] * D + d[None, :]
    tl.store(at, total, mask=(i < rows)[:, None] & (d < D)[None, :])
