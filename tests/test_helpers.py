"""The helpers of the tests can fail, and the oracle agrees with what is known by hand."""

import math

import oracle
import oracle_stateful
import pytest
import torch
from tolerances import ROUNDING, assert_close, tolerance


def test_memory_that_nobody_wrote_is_nan() -> None:
    written = torch.zeros(3)
    for unwritten in (torch.empty(3), written.new_empty(3), torch.empty_like(written), torch.empty(4, dtype=torch.float64)):
        assert unwritten.isnan().all()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_comparison_fails_just_outside_its_tolerance(dtype: torch.dtype) -> None:
    expected = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    near, far = (expected + torch.tensor([0.0, 0.0, share * 2 * tolerance(dtype)]) for share in (0.9, 1.1))
    assert_close(near, expected, "near", dtype=dtype)
    with pytest.raises(AssertionError, match="far: worst difference"):
        assert_close(far, expected, "far", dtype=dtype)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1.0, math.nan], [1.0, math.nan]),
        ([1.0, math.inf], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, -math.inf]),
        ([math.inf], [-math.inf]),
        ([1.0], [1.0, 1.0]),
        ([1e-3], [0.0]),
    ],
)
def test_comparison_fails_on_what_is_no_rounding_error(actual: list[float], expected: list[float]) -> None:
    with pytest.raises(AssertionError):
        assert_close(torch.tensor(actual), torch.tensor(expected), "x")


def test_comparison_of_whole_numbers_is_exact() -> None:
    assert_close(torch.tensor([3, 4]), torch.tensor([3, 4]), "x")
    with pytest.raises(AssertionError, match="whole numbers differ"):
        assert_close(torch.tensor([3, 4]), torch.tensor([3, 5]), "x")


def test_comparison_accepts_equal_infinities_and_known_cancellation() -> None:
    assert_close(torch.tensor([-math.inf, 1.0]), torch.tensor([-math.inf, 1.0]), "x")
    assert_close(torch.tensor([1e-7]), torch.tensor([0.0]), "x", magnitude=1.0)


def test_oracle_by_hand() -> None:
    eye, ones = torch.eye(3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
    ids = [0, 1, 2]
    assert_close(oracle.logsumexp(eye, eye, 5.0, ids, ids), ones[0] * math.log(2), "orthonormal rows")
    assert_close(oracle.logsumexp(eye[:1], eye[:1], 5.0, [0], [0]), ones[0, :1] * -math.inf, "row without keys")
    assert_close(oracle.ntxent(ones, ones, temperature=0.1), ones[:, :2] * math.log(5), "equal rows")
    assert_close(oracle.dcl(ones, ones, temperature=0.1), ones[:, :2] * math.log(4), "equal rows")
    assert_close(oracle.kernel_sum(eye, "gaussian", 0.5, ids), ones[0] * 2 * math.exp(-1), "gaussian")
    assert oracle_stateful.chain_law([0.0, 0.0, 0.0]) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert oracle_stateful.chain_law([0.0, math.log(0.5)], burn_in=1) == pytest.approx([0.5, 0.5])
