"""Kernels of the backward pass of rows that are too wide for one tile. The flags are explained in `kernels.py`.

A tile of the gradient would not fit into registers, and every chunk of its columns would need the similarities again. So slopes
of a slab, a rectangle of pairs, are stored, and a second kernel multiplies them with the rows of the other side.

Strips, which elsewhere say which pairs count, are the rows and columns of the slab here: from s0 to e0, and from s1 to e1.
"""

import triton
import triton.language as tl

from contrastive_zoo.pairwise.fused.device import CHANGING, counted_pairs, load_ids, load_rows, shift_of, similarities
from contrastive_zoo.pairwise.fused.functions import LIFT, LOGSUMEXP, add_product, load_side, share_exponentials, slopes_of


@triton.jit
def _slopes_at_scales(
    similarity, SCALE, LEVEL, ERRORS, WEIGHTS, OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, i, j, g, sets, rows, columns,
    squared_bound, parameter, floor, step, SCALES: tl.constexpr, K: tl.constexpr, TERM: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    slopes = tl.zeros(similarity.shape, tl.float32)
    for k in tl.static_range(K):
        z = g + k * sets
        scale, level, weight = load_side(LEVEL, ERRORS, WEIGHTS, SCALE, z * rows + i, i, rows, k, step, SCALES, TERM)
        other_scale, other_level, other_weight = load_side(
            OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, SCALE, z * columns + j, j, columns, k, step, SCALES, TERM
        )
        shift = tl.max(shift_of(scale, squared_bound)[0], 0)
        slopes += slopes_of(
            similarity, scale, level, weight, other_scale, other_level, other_weight, shift, parameter, floor,
            WEIGHTS is not None, OTHER_WEIGHTS is not None, SHARED, TERM,
        )  # fmt: skip
    return slopes


@triton.jit(do_not_specialize=CHANGING)
def slopes(
    X, Y, IDS_X, IDS_Y, SCALE, LEVEL, ERRORS, WEIGHTS, OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, SLAB,
    rows, columns, sets, x_set, x_row, y_set, y_row, group, squared_bound, s0, e0, s1, e1, parameter, floor, step,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, IDS: tl.constexpr,
    EQUAL: tl.constexpr, SCALES: tl.constexpr, K: tl.constexpr, TERM: tl.constexpr,
):  # fmt: skip
    """Slopes of a slab, (G, rows of the slab, columns of the slab), through the sums of rows and of the other side."""
    g = tl.program_id(2).to(tl.int64)
    i, j = s0 + tl.program_id(0) * BM + tl.arange(0, BM), s1 + tl.program_id(1) * BN + tl.arange(0, BN)
    ids, other_ids = load_ids(IDS_X, i, e0, group, IDS), load_ids(IDS_Y, j, e1, group, IDS)
    X, Y = X + g * x_set, Y + g * y_set
    similarity = similarities(i, X, Y, i, j, e0, e1, x_row, y_row, D, WIDTH, BM, BN, PRECISION)
    shared = False
    if (TERM == LOGSUMEXP) & (WEIGHTS is not None) & (OTHER_WEIGHTS is not None) & (SCALES != 2):
        shared = share_exponentials(SCALE, i, rows, squared_bound, SCALES, K)
    if shared:
        found = _slopes_at_scales(
            similarity, SCALE, LEVEL, ERRORS, WEIGHTS, OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, i, j, g, sets, rows, columns,
            squared_bound, parameter, floor, step, SCALES, K, TERM, True,
        )  # fmt: skip
    else:
        found = _slopes_at_scales(
            similarity, SCALE, LEVEL, ERRORS, WEIGHTS, OTHER_LEVEL, OTHER_ERRORS, OTHER_WEIGHTS, i, j, g, sets, rows, columns,
            squared_bound, parameter, floor, step, SCALES, K, TERM, False,
        )  # fmt: skip
    found = tl.where(counted_pairs(i, j, e1, ids, other_ids, s0, e0, s1, e1, IDS, EQUAL, 0), found, 0.0)
    at = (g * (e0 - s0) + (i - s0))[:, None] * (e1 - s1) + (j - s1)[None, :]
    tl.store(SLAB + at, found.to(SLAB.dtype.element_ty), mask=(i < e0)[:, None] & (j < e1)[None, :])


@triton.jit(do_not_specialize=CHANGING)
def products(
    SLAB, Y, TOP, OUT, OFFSETS, rows, y_set, y_row, s0, e0, s1, e1,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, TERM: tl.constexpr,
):  # fmt: skip
    """Add the product of a slab and the rows of the other side to gradients; a program computes a chunk of WIDTH features.

    If OFFSETS is given, the sums of slopes are added to the gradients of the squared lengths of rows.
    """
    g, d0 = tl.program_id(2).to(tl.int64), tl.program_id(1) * WIDTH
    i = s0 + tl.program_id(0) * BM + tl.arange(0, BM)
    total, offset = tl.zeros([BM, WIDTH], tl.float32), tl.zeros([BM], tl.float32)
    from_row = SLAB + (g * (e0 - s0) + (i - s0))[:, None] * (e1 - s1)
    for start in range(s1, e1, BN):
        j = start + tl.arange(0, BN)
        found = tl.load(from_row + (j - s1)[None, :], mask=(i < e0)[:, None] & (j < e1)[None, :], other=0.0)
        if OFFSETS is not None:
            offset += tl.sum(found.to(tl.float32), 1)
        total = add_product(found, load_rows(Y + g * y_set, j, e1, y_row, d0, D, WIDTH), total, PRECISION, TERM)
    factor = tl.load(TOP) / LIFT
    d = d0 + tl.arange(0, WIDTH)
    at, inside = OUT + (g * rows + i)[:, None] * D + d[None, :], (i < e0)[:, None] & (d < D)[None, :]
    tl.store(at, tl.load(at, mask=inside, other=0.0) + total * factor, mask=inside)
    if OFFSETS is not None:
        inside = (i < e0) & (d0 == 0)
        before = tl.load(OFFSETS + g * rows + i, mask=inside, other=0.0)
        tl.store(OFFSETS + g * rows + i, before + offset * factor * -0.5, mask=inside)
