"""Kernels of the forward pass. The flags are explained in `kernels.py`."""

import triton
import triton.language as tl

from contrastive_zoo.pairwise.fused.device import (
    CHANGING,
    LOWEST,
    counted_pairs,
    load_ids,
    load_rows,
    load_scale,
    shift_of,
    similarities,
    tile_of,
    tiles_of,
)
from contrastive_zoo.pairwise.fused.functions import load_level, value_and_derivative


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
    first, both, every = tiles_of(i0, rows, columns, IDS_X, IDS_Y, s0, e0, s1, e1, BM, BN, PART, EQUAL)
    if TOTALS is not None:
        added = i < tl.where(bounded, rows, 0)
        every = tl.where(bounded, 0, every)
        total = tl.load(TOTALS + at, mask=added, other=0.0)
        if MEANS is not None:
            weighted = tl.load(WEIGHTED + at, mask=added, other=0.0)
    X, Y, x = X + g * x_set, Y + g * y_set, i
    if D <= WIDTH:
        x = load_rows(X, i, rows, x_row, 0, D, WIDTH)
    ids = load_ids(IDS_X, i, rows, group, IDS)
    for t in range(0, every):
        start, end = tile_of(t, first, both, i0, columns, s0, e0, s1, e1, BN, PART, EQUAL)
        j = start + tl.arange(0, BN)
        other_ids = load_ids(IDS_Y, j, end, group, IDS)
        similarity = similarities(x, X, Y, i, j, rows, end, x_row, y_row, D, WIDTH, BM, BN, PRECISION)
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
        X, Y, x = X + g * x_set, Y + g * y_set, i
        if D <= WIDTH:
            x = load_rows(X, i, last, x_row, 0, D, WIDTH)
        ids = load_ids(IDS_X, i, last, group, IDS)
        for t in range(0, tiles):
            j = origin + t * BN + tl.arange(0, BN)
            at = z.to(tl.int64) * columns + j
            other_ids = load_ids(IDS_Y, j, columns, group, IDS)
            similarity = similarities(x, X, Y, i, j, last, columns, x_row, y_row, D, WIDTH, BM, BN, PRECISION)
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


@triton.jit(do_not_specialize=CHANGING)
def sums(
    X, Y, IDS_X, IDS_Y, SCALE, LEVEL, OTHER_LEVEL, OUT, DERIVATIVES, WEIGHTED,
    rows, columns, sets, x_set, x_row, y_set, y_row, group, squared_bound, s0, e0, s1, e1, parameter, floor, step,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
    IDS: tl.constexpr, EQUAL: tl.constexpr, SCALES: tl.constexpr, PART: tl.constexpr, TERM: tl.constexpr,
):  # fmt: skip
    """Sums of a term over the other side, for every row.

    Also, if DERIVATIVES is given, sums of the derivatives of the term in the bias of the row; and if WEIGHTED is given, sums of
    these derivatives times similarities, which are the derivatives in the scale.
    """
    i0, g = tl.program_id(0) * BM, tl.program_id(1).to(tl.int64)
    i = i0 + tl.arange(0, BM)
    at = g * rows + i
    scale, level = load_scale(SCALE, i, rows, 0, SCALES), load_level(LEVEL, at, i, rows, step)
    total, derivatives, weighted = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    first, both, every = tiles_of(i0, rows, columns, IDS_X, IDS_Y, s0, e0, s1, e1, BM, BN, PART, EQUAL)
    X, Y, x = X + g * x_set, Y + g * y_set, i
    if D <= WIDTH:
        x = load_rows(X, i, rows, x_row, 0, D, WIDTH)
    ids = load_ids(IDS_X, i, rows, group, IDS)
    for t in range(0, every):
        start, end = tile_of(t, first, both, i0, columns, s0, e0, s1, e1, BN, PART, EQUAL)
        j = start + tl.arange(0, BN)
        other_ids = load_ids(IDS_Y, j, end, group, IDS)
        other_level = load_level(OTHER_LEVEL, g * columns + j, j, end, step)
        similarity = similarities(x, X, Y, i, j, rows, end, x_row, y_row, D, WIDTH, BM, BN, PRECISION)
        counted = counted_pairs(i, j, end, ids, other_ids, s0, e0, s1, e1, IDS, EQUAL, PART)
        derive: tl.constexpr = (DERIVATIVES is not None) | (WEIGHTED is not None)
        value, derivative = value_and_derivative(similarity, scale, level, other_level, parameter, floor, derive, TERM)
        total += tl.sum(tl.where(counted, value, 0.0), 1)
        if derive:
            derivative = tl.where(counted, derivative, 0.0)
            derivatives += tl.sum(derivative, 1)
            if WEIGHTED is not None:
                weighted += tl.sum(derivative * similarity, 1)
    tl.store(OUT + at, total, mask=i < rows)
    if DERIVATIVES is not None:
        tl.store(DERIVATIVES + at, derivatives, mask=i < rows)
    if WEIGHTED is not None:
        tl.store(WEIGHTED + at, weighted, mask=i < rows)
