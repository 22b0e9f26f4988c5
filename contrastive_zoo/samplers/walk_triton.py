r"""The kernels of `walk_fused.py`: chains over the rows of a batch, without the matrix of pairs and without atomic additions.

A chain at log score c moves to column j if c < t_j = s_j - log u_j. A column is the map "below t_j becomes s_j", and maps
compose (`metropolis_hastings.py`), so a program scans tiles: BM anchors times G runs of 8 neighbouring columns. A tile is held
as 8 arrays (BM, G), the r-th with the r-th column of every run. The scan inside a run is plain arithmetic on these arrays, its
moves are the bits of a byte, a call of Philox serves four arrays, and only the maps of runs, (largest t, end of the free
chain), go through `tl.associative_scan`. A move is one of the free chain of its run at which the largest t so far exceeds c at
the start of the run.

1. `walk`: a program per block of anchors. Leaves a bit per pair, the last log score, and the log of the mean of exponentials.
2. `rows`: a program per block of anchors, from the last column to the first. A reverse scan over the bits counts the kept
   columns until the next move: W_ij, the columns that anchor i spent at row j. Leaves the results and the gradient of anchors,
   and per block of columns the kept columns that follow it before the next move.
3. `columns`: a program per block of columns. The same counts from the bits and from what `rows` left; the gradient of states.

Scores are powers of 2 inside. D is the number of features, WIDTH the next power of two from 16 on, PRECISION how float32
operands are multiplied. Moves, states and shares do not depend on BM and G; sums do, in their last bits.
"""

import math

import triton
import triton.language as tl

from contrastive_zoo.samplers.philox_triton import words

RUN = tl.constexpr(8)
LOG2_E, LN_2 = tl.constexpr(math.log2(math.e)), tl.constexpr(math.log(2))
INFINITY = tl.constexpr(math.inf)
# Start of a running maximum: a difference with it is never NaN, as one with an infinity could be.
LOWEST = tl.constexpr(-1.0e30)
# The stream of the draws of chains: `DrawTable` uses smaller ones.
STREAM = tl.constexpr(2)
# A factor of weights in half precision: float16 has no normal numbers below 2^-14.
LIFT = tl.constexpr(4096.0)
# Numbers that change from batch to batch and must not cause a compilation.
CHANGING = ["first", "count", "number", "bytes"]


@triton.jit
def _load_rows(X, i, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows, padded with zeros."""
    d = tl.arange(0, WIDTH)
    mask = inside[:, None]
    if D < WIDTH:
        mask = mask & (d < D)[None, :]
    return tl.load(X + i.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)


@triton.jit
def _load_ids(IDS, i, inside):
    """The sample of each row, a position in the batch."""
    return tl.load(IDS + i, mask=inside, other=-1).to(tl.int32)


@triton.jit
def _log2(x, FAST: tl.constexpr):
    if FAST:  # tl.log2 is a polynomial of a dozen instructions; this is one, off by 2^-22, which the interpreter cannot run
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def _then(top, end, next_top, next_end):
    """Two maps "below top becomes end", one after the other."""
    return tl.maximum(top, next_top), tl.where(end < next_top, next_end, end)


@triton.jit
def _until(wait, still, next_wait, next_still):
    """Kept columns of two neighbours before their first move, and 1 if there is no move, else 0; scanned from the right."""
    return next_wait + next_still * wait, still * next_still


@triton.jit
def _by_place(product, BM: tl.constexpr, G: tl.constexpr):
    """The 8 arrays (BM, G) of a product whose columns are the first columns of all runs, then the second ones, and so on."""
    cut = tl.permute(tl.reshape(product, [BM, 2, 2, 2, G]), [0, 4, 1, 2, 3])
    even, odd = tl.split(cut)
    even0, even1 = tl.split(even)
    odd0, odd1 = tl.split(odd)
    first, fifth = tl.split(even0)
    third, seventh = tl.split(even1)
    second, sixth = tl.split(odd0)
    fourth, eighth = tl.split(odd1)
    return first, second, third, fourth, fifth, sixth, seventh, eighth


@triton.jit(do_not_specialize=CHANGING)
def walk(
    X, IDS, CARRIED, SCALE, SEED, VALID, BITS, LOG_SCORE, LOG_MEAN, first, count, number, bytes,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The moves of BM anchors, a bit per column; their last log scores; and the log of the mean over the valid columns."""
    a, g, n = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, G), tl.arange(0, G * RUN)
    inside = a < count
    row = first + a
    x, ids = _load_rows(X, row, inside, D, WIDTH), _load_ids(IDS, row, inside)
    scale, carried = tl.load(SCALE).to(tl.float32) * LOG2_E, tl.load(CARRIED + a, mask=inside, other=-INFINITY)
    current = carried * LOG2_E
    nothing, none = tl.zeros([BM, G], tl.int32), tl.full([BM, G], -INFINITY, tl.float32)
    peak, total = tl.full([BM, G], LOWEST, tl.float32), tl.zeros([BM, G], tl.float32)
    for start in range(0, number, G * RUN):
        # The order of the rows makes `_by_place` move no register.
        j = (n % G) * RUN + n // G + start
        y = _load_rows(X, j, j < number, D, WIDTH)
        products = _by_place(tl.dot(x, tl.trans(y), input_precision=PRECISION), BM, G)
        byte, bits, top, end, tops = g + start // RUN, nothing, none, none, ()
        for half in tl.static_range(2):
            draws, scores = words(SEED, row[:, None], (byte * 2 + half)[None, :], STREAM), ()
            for r in tl.static_range(4):
                column = byte * RUN + 4 * half + r
                others = _load_ids(IDS, column, column < number)
                counted = (ids[:, None] != others[None, :]) & (column < number)[None, :]
                score = tl.where(counted, products[4 * half + r] * scale, -INFINITY)
                # In (0, 1], so that every finite score has a finite threshold.
                draw = draws[r].to(tl.float32) * 2.0**-32 + 2.0**-33
                threshold = score - _log2(draw, FAST)
                moves = end < threshold
                bits |= tl.where(moves, 1 << (4 * half + r), 0)
                end, top = tl.where(moves, score, end), tl.maximum(top, threshold)
                tops, scores = tops + (top,), scores + (score,)
            largest = tl.maximum(peak, top)  # thresholds are at most 33 above the scores
            total, peak = total * tl.exp2(peak - largest), largest
            for r in tl.static_range(4):
                total += tl.exp2(scores[r] - largest)
        highest, last = tl.associative_scan((top, end), 1, _then)
        after = tl.where(current[:, None] < highest, last, current[:, None])
        before = tl.where(g[None, :] == 0, current[:, None], tl.gather(after, nothing + tl.maximum(g - 1, 0)[None, :], 1))
        reached = nothing
        for r in tl.static_range(RUN):
            reached |= tl.where(before < tops[r], 1 << r, 0)
        place = BITS + a.to(tl.int64)[:, None] * bytes + byte[None, :]
        tl.store(place, (bits & reached).to(tl.uint8), mask=inside[:, None] & (byte < bytes)[None, :])
        current = tl.max(tl.where(g[None, :] == G - 1, after, -INFINITY), 1)
    peaks = tl.max(peak, 1)
    sums = tl.sum(total * tl.exp2(peak - peaks[:, None]), 1)
    log_sum = tl.where(sums == 0, -INFINITY, (tl.log2(tl.where(sums == 0, 1.0, sums)) + peaks) * LN_2)
    valid = tl.load(VALID + row, mask=inside, other=1).to(tl.float32)
    tl.store(LOG_MEAN + a, log_sum - tl.log(tl.maximum(valid, 1.0)), mask=inside)
    tl.store(LOG_SCORE + a, tl.where(current == carried * LOG2_E, carried, current * LN_2), mask=inside)


@triton.jit
def _load_anchors(IDS, FIRST_KEPT, row, inside):
    return _load_ids(IDS, row, inside), tl.load(FIRST_KEPT + row, mask=inside, other=0).to(tl.int32)


@triton.jit
def _load_share(KEPT, row, inside):
    """One over the largest power of two up to the number of kept columns, and the power over the number.

    In half precision small integers over a power of two are exact; all anchors usually have the same quotient.
    """
    kept = tl.load(KEPT + row, mask=inside, other=1).to(tl.float32)
    power = (kept.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return 1.0 / power, power / kept


@triton.jit
def _stays(
    BITS, IDS, a, inside, ids, first_kept, wait, block, number, bytes, BM: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """What anchors did in a block of columns.

    Returns:
        (BM, 8 G) kept columns that an anchor spent at each column; (BM,) kept columns from the start of the block to the next
        move; (BM,) the last column it moved to, -1 for none; and (BM,) its moves.
    """
    g = tl.arange(0, G)
    byte, nothing = block * G + g, tl.zeros([BM, G], tl.int32)
    place = BITS + a.to(tl.int64)[:, None] * bytes + byte[None, :]
    bits = tl.load(place, mask=inside[:, None] & (byte < bytes)[None, :], other=0).to(tl.int32)
    run, moves, last, stays, whole = nothing, nothing, nothing - 1, (), ()
    for k in tl.static_range(RUN):
        column = byte * RUN + (RUN - 1 - k)
        others = _load_ids(IDS, column, column < number)
        kept = (ids[:, None] != others[None, :]) & (tl.where(column < number, column, -1)[None, :] >= first_kept[:, None])
        run += kept.to(tl.int32)
        moved = ((bits >> (RUN - 1 - k)) & 1) != 0
        moves += moved.to(tl.int32)
        last = tl.maximum(last, tl.where(moved, column[None, :], -1))
        stays = (tl.where(moved, run, 0),) + stays
        run = tl.where(moved, 0, run)
    waits, still = tl.associative_scan((run, (bits == 0).to(tl.int32)), 1, _until, reverse=True)
    waits += still * wait[:, None]
    behind = tl.where(g[None, :] == G - 1, wait[:, None], tl.gather(waits, nothing + tl.minimum(g + 1, G - 1)[None, :], 1))
    for r in tl.static_range(RUN):  # a run's last move also keeps what follows the run
        whole = whole + (stays[r] + tl.where((bits >> r) == 1, behind, 0),)
    evens = tl.join(tl.join(whole[0], whole[4]), tl.join(whole[2], whole[6]))
    odds = tl.join(tl.join(whole[1], whole[5]), tl.join(whole[3], whole[7]))
    spent = tl.reshape(tl.join(evens, odds), [BM, G * RUN]).to(tl.float32)
    return spent, tl.sum(tl.where(g[None, :] == 0, waits, 0), 1), tl.max(last, 1), tl.sum(moves, 1)


@triton.jit(do_not_specialize=CHANGING)
def rows(
    X, IDS, FIRST_KEPT, KEPT, VALID, UPSTREAM, BITS, WAIT, SIMILARITY, SHARE, STATE, ACCEPTANCE, GRADIENT,
    first, count, number, bytes,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Results of BM anchors, if SIMILARITY is given; WAIT; and the gradient of anchors, added to GRADIENT if that is given."""
    a, n = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, G * RUN)
    inside = a < count
    row = first + a
    ids, first_kept = _load_anchors(IDS, FIRST_KEPT, row, inside)
    unit, quotient = _load_share(KEPT, row, inside)
    mean, wait = tl.zeros([BM, WIDTH], tl.float32), tl.zeros([BM], tl.int32)
    state, moves, blocks = tl.full([BM], -1, tl.int32), tl.zeros([BM], tl.int32), tl.cdiv(number, G * RUN)
    for t in range(0, blocks):
        block = blocks - 1 - t
        tl.store(WAIT + block.to(tl.int64) * count + a, wait, mask=inside)
        spent, wait, last, moved = _stays(BITS, IDS, a, inside, ids, first_kept, wait, block, number, bytes, BM, G)
        state, moves = tl.maximum(state, last), moves + moved
        j = block * (G * RUN) + n
        y = _load_rows(X, j, j < number, D, WIDTH)
        mean = tl.dot((spent * (unit * LIFT)[:, None]).to(y.dtype), y, mean, input_precision=PRECISION)
    mean *= (quotient / LIFT)[:, None]
    if SIMILARITY is not None:
        x = _load_rows(X, row, inside, D, WIDTH).to(tl.float32)
        valid = tl.load(VALID + row, mask=inside, other=1).to(tl.float32)
        tl.store(SIMILARITY + a, tl.sum(mean * x, 1), mask=inside)
        tl.store(SHARE + a, wait.to(tl.float32) * unit * quotient, mask=inside)
        tl.store(STATE + a, state.to(tl.int64), mask=inside)
        tl.store(ACCEPTANCE + a, moves.to(tl.float32) / tl.maximum(valid, 1.0), mask=inside)
    if GRADIENT is not None:
        if UPSTREAM is not None:
            mean *= tl.load(UPSTREAM + a, mask=inside, other=0.0)[:, None]
        d = tl.arange(0, WIDTH)
        place = GRADIENT + row.to(tl.int64)[:, None] * D + d[None, :]
        mask = inside[:, None] & (d < D)[None, :]
        tl.store(place, tl.load(place, mask=mask, other=0.0) + mean, mask=mask)


@triton.jit(do_not_specialize=CHANGING)
def columns(
    X, IDS, FIRST_KEPT, KEPT, UPSTREAM, BITS, WAIT, GRADIENT, first, count, number, bytes,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of 8 G rows as states of the anchors, added to GRADIENT."""
    block = tl.program_id(0)
    j, total = block * (G * RUN) + tl.arange(0, G * RUN), tl.zeros([G * RUN, WIDTH], tl.float32)
    usual = _load_share(KEPT, first + tl.arange(0, BM) * 0, tl.arange(0, BM) >= 0)[1]
    for start in range(0, count, BM):
        a = start + tl.arange(0, BM)
        inside = a < count
        row = first + a
        ids, first_kept = _load_anchors(IDS, FIRST_KEPT, row, inside)
        unit, quotient = _load_share(KEPT, row, inside)
        weight = unit * LIFT * (quotient / usual)
        if UPSTREAM is not None:
            weight *= tl.load(UPSTREAM + a, mask=inside, other=0.0)
        wait = tl.load(WAIT + block.to(tl.int64) * count + a, mask=inside, other=0)
        spent = _stays(BITS, IDS, a, inside, ids, first_kept, wait, block, number, bytes, BM, G)[0]
        x = _load_rows(X, row, inside, D, WIDTH)
        total = tl.dot(tl.trans((spent * weight[:, None]).to(x.dtype)), x, total, input_precision=PRECISION)
    total *= tl.max(usual, 0) / LIFT
    d = tl.arange(0, WIDTH)
    place = GRADIENT + j.to(tl.int64)[:, None] * D + d[None, :]
    mask = (j < number)[:, None] & (d < D)[None, :]
    tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)
