"""Terms on a tile: what is summed over pairs, and slopes, the derivatives of the loss in the similarities.

A row has a scale, a level and a weight. The level is the log-sum-exp of the row, its bias, or its squared length.
"""

import triton
import triton.language as tl

from contrastive_zoo.pairwise import fused
from contrastive_zoo.pairwise.fused.device import load_scale, shift_of

LOGSUMEXP, SOFTPLUS, SQUARES = tl.constexpr(fused.LOGSUMEXP), tl.constexpr(fused.SOFTPLUS), tl.constexpr(fused.SQUARES)
GAUSSIAN, LOG, IMQ, RIESZ = (tl.constexpr(term) for term in (fused.GAUSSIAN, fused.LOG, fused.IMQ, fused.RIESZ))
# A factor of slopes in the second product: float16 has no normal numbers below 2^-14.
LIFT = tl.constexpr(4096.0)
# The floor of squared distances of rows of length 0: the square of the resolution of float32.
TINY = tl.constexpr(2.0**-46)


@triton.jit
def load_level(LEVEL, at, i, end, step):
    """The level of each row; 1 for rows of length 1, whose lengths are not stored."""
    if LEVEL is not None:
        found = tl.load(LEVEL + at * step, mask=i < end, other=0.0).to(tl.float32)
    else:
        found = (i * 0).to(tl.float32) + 1.0
    return found


@triton.jit
def load_side(LEVEL, ERRORS, WEIGHTS, SCALE, at, i, end, k, step, SCALES: tl.constexpr, TERM: tl.constexpr):
    """The scale, level and weight of each row, 0 for a side without weights; weights get the factors that slopes lack."""
    scale = (i * 0).to(tl.float32)
    level, weight = scale, scale
    if WEIGHTS is not None:
        scale = load_scale(SCALE, i, end, k, SCALES)
        level = load_level(LEVEL, at, i, end, step)
        weight = tl.load(WEIGHTS + at, mask=i < end, other=0.0) * LIFT
        if TERM == LOGSUMEXP:
            level = tl.where(level == -float("inf"), 0.0, level)
            weight *= tl.exp(-tl.load(ERRORS + at, mask=i < end, other=0.0))
    return scale, level, weight


@triton.jit
def _log1p(e):
    """log(1 + e) for e from 0 to 1, as exact for small e: 2 artanh(e / (2 + e)), to a relative error of 1.4e-8."""
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13))
    return 2.0 * s * (1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * series))))


@triton.jit
def _sigmoid(logits):
    e = tl.exp(-tl.abs(logits))
    return tl.where(logits >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _distances(similarity, level, other_level, floor, TERM: tl.constexpr):
    """Squared distances, at least their floor, and whether they are above it; below it a kernel is constant."""
    squares = level[:, None] + other_level[None, :]
    distances = squares - 2.0 * similarity
    least = squares * 0.0
    if TERM == RIESZ:
        least = squares * (0.5 * floor) + TINY
    return tl.maximum(distances, least), distances >= least


@triton.jit
def _power(d, exponent):
    return tl.exp(exponent * tl.log(d))


@triton.jit
def _kernel(d, t, TERM: tl.constexpr):
    """A kernel of squared distances."""
    if TERM == GAUSSIAN:
        found = tl.exp(-t * d)
    elif TERM == LOG:
        found = -tl.log(1.0 + t * d)
    elif TERM == IMQ:
        found = t / tl.sqrt(d + t * t)
    else:
        found = tl.where(t > 0, 1.0, -1.0) * _power(d, -0.5 * t)
    return found


@triton.jit
def _kernel_slope(d, t, TERM: tl.constexpr):
    """The derivative of a kernel in the squared distance."""
    if TERM == GAUSSIAN:
        found = -t * tl.exp(-t * d)
    elif TERM == LOG:
        found = -t / (1.0 + t * d)
    elif TERM == IMQ:
        root = tl.sqrt(d + t * t)
        found = -0.5 * t / (root * root * root)
    else:
        found = -0.5 * tl.abs(t) * _power(d, -0.5 * t - 1.0)
    return found


@triton.jit
def value_and_derivative(similarity, scale, level, other_level, parameter, floor, DERIVE: tl.constexpr, TERM: tl.constexpr):
    """What is summed over the pairs of a tile, and, if DERIVE, its derivative in the level of the row."""
    derivative = similarity
    if TERM == SOFTPLUS:
        logits = similarity * scale[:, None] + level[:, None]
        e = tl.exp(-tl.abs(logits))
        value = tl.maximum(logits, 0.0) + _log1p(e)
        if DERIVE:
            derivative = tl.where(logits >= 0, 1.0, e) / (1.0 + e)
    elif TERM == SQUARES:
        value = similarity * similarity
    else:
        value = _kernel(_distances(similarity, level, other_level, floor, TERM)[0], parameter, TERM)
    return value, derivative


@triton.jit
def _shared_exponentials(similarity, scale, level, weight, other_level, other_weight, shift):
    """Slopes of bounded logits: one exponential, relative to the bound, serves both sides."""
    weights = (weight * tl.exp(shift - level))[:, None] + (other_weight * tl.exp(shift - other_level))[None, :]
    return tl.exp(similarity * scale[:, None] - shift) * weights


@triton.jit
def slopes_of(
    similarity, scale, level, weight, other_scale, other_level, other_weight, shift, parameter, floor,
    OWN: tl.constexpr, OTHER: tl.constexpr, SHARED: tl.constexpr, TERM: tl.constexpr,
):  # fmt: skip
    """Slopes of a tile through the sums of its rows (if OWN) and of the rows of the other side (if OTHER)."""
    if TERM >= SQUARES:
        if TERM == SQUARES:
            slopes = similarity
        else:
            distances, above = _distances(similarity, level, other_level, floor, TERM)
            slopes = tl.where(above, _kernel_slope(distances, parameter, TERM), 0.0)
        slopes *= weight[:, None] + other_weight[None, :]
    elif SHARED:
        slopes = _shared_exponentials(similarity, scale, level, weight, other_level, other_weight, shift)
    else:
        slopes = tl.zeros(similarity.shape, tl.float32)
        if OWN:
            if TERM == LOGSUMEXP:
                slopes += tl.exp(similarity * scale[:, None] - level[:, None]) * weight[:, None]
            else:
                slopes += _sigmoid(similarity * scale[:, None] + level[:, None]) * weight[:, None]
        if OTHER:
            if TERM == LOGSUMEXP:
                slopes += tl.exp(similarity * other_scale[None, :] - other_level[None, :]) * other_weight[None, :]
            else:
                slopes += _sigmoid(similarity * other_scale[None, :] + other_level[None, :]) * other_weight[None, :]
    return slopes


@triton.jit
def share_exponentials(SCALE, i, end, squared_bound, SCALES: tl.constexpr, K: tl.constexpr):
    """Whether logits are bounded at every scale, so that one exponential of a pair can serve both of its rows."""
    shared = True
    for k in tl.static_range(K):
        shared = shared & shift_of(load_scale(SCALE, i, end, k, SCALES), squared_bound)[1]
    return shared


@triton.jit
def add_product(slopes, y, total, PRECISION: tl.constexpr, TERM: tl.constexpr):
    """Add the product of slopes and rows.

    Slopes of squares and kernels may exceed the range of float16. TF32 rounds them as float16 does, and holds the rows.
    """
    if (TERM >= SQUARES) & (y.dtype == tl.float16):
        total = tl.dot(slopes.to(tl.float32), y.to(tl.float32), total, input_precision="tf32")
    else:
        total = tl.dot(slopes.to(y.dtype), y, total, input_precision=PRECISION)
    return total
