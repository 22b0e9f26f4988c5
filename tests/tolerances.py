"""How close is equal: one budget per dtype, and the one comparison that all tests use."""

import torch
from torch import Tensor

# Relative rounding error of one operation. A logit s/t carries this error relative to itself, so its exponential is off by
# the logit times as much; sums of n like terms add at most a factor log2(n) by pairwise summation.
ROUNDING = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}

# Operations between an input and a gradient: norm, product, exponential, sum, quotient and their derivatives. In half
# precision rows are rounded once and gradients once; all between is float32.
OPERATIONS = {torch.float64: 32.0, torch.float32: 32.0, torch.float16: 4.0, torch.bfloat16: 4.0}
OPERATIONS_PER_LOGIT = {torch.float64: 4.0, torch.float32: 4.0, torch.float16: 0.0, torch.bfloat16: 0.0}


def tolerance(dtype: torch.dtype, logit: float = 10.0) -> float:
    """Error to be expected relative to the largest entry, where the largest logit is about `logit`."""
    return ROUNDING[dtype] * (OPERATIONS[dtype] + OPERATIONS_PER_LOGIT[dtype] * logit)


def assert_close(
    actual: Tensor,
    expected: Tensor,
    what: str,
    *,
    dtype: torch.dtype | None = None,
    logit: float = 10.0,
    magnitude: float = 0.0,
) -> None:
    """Raise unless shapes and infinities agree and the worst difference is within the tolerance of the largest entry.

    Whole numbers must be equal.

    Args:
        actual: What the library computed; its dtype sets the tolerance unless `dtype` does.
        expected: What it should be, in any dtype.
        what: Name in the message: "loss", "gradient of x", ...
        dtype: The lowest precision on the way.
        logit: Largest |scale * similarity| on the way.
        magnitude: Size of the terms where `expected` is small because terms cancel.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), f"{what}: whole numbers differ"
        return
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert not a.isnan().any(), f"{what}: NaN"
    infinite = e.isinf()
    assert torch.equal(a.isinf(), infinite), f"{what}: infinities differ"
    assert torch.equal(a[infinite], e[infinite]), f"{what}: signs of infinities differ"
    difference, size = (a - e)[~infinite].abs(), e[~infinite].abs()
    if difference.numel() == 0:
        return
    allowed = tolerance(dtype or actual.dtype, logit) * max(float(size.max()), magnitude)
    assert float(difference.max()) <= allowed, f"{what}: worst difference {float(difference.max()):.2e}, allowed {allowed:.2e}"


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], logit: float = 10.0) -> None:
    """`assert_close` of a loss and its gradients in both views."""
    for what, a, e in zip(("loss", "gradient of z1", "gradient of z2"), actual, expected, strict=True):
        assert_close(a, e, what, logit=logit)
