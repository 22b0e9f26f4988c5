"""What is special about log-sum-exps: rows of any length, known bounds, and logits far from what exponentials can hold."""

import oracle
import pytest
import torch
from cases import DTYPES, rows, weights
from tolerances import assert_close

from contrastive_zoo import pairwise

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
def test_rows_of_any_length(engine: str, dtype: torch.dtype) -> None:
    x, scale = rows(63, 7, dtype=dtype, unit=False), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    exact = rows(63, 7, unit=False)
    reference = oracle.logsumexp(exact, exact, scale, range(63), range(63))
    logit = 2 * float(x.detach().norm(dim=1).max()) ** 2
    value = pairwise.logsumexp(x, scale=scale, backend=engine)
    assert_close(value, reference, "value", logit=logit)
    found = torch.autograd.grad(value, (x, scale), weights(63, dtype=dtype))
    wanted = torch.autograd.grad(reference, (exact, scale), weights(63))
    assert_close(found[0], wanted[0], "gradient of rows", logit=logit)
    assert_close(found[1], wanted[1], "gradient of scale", dtype=dtype, logit=logit)


def test_a_given_bound_on_the_length_changes_nothing(engine: str) -> None:
    x = rows(63, 7)
    looked, told = (pairwise.logsumexp(x, scale=10.0, norm_bound=bound, backend=engine) for bound in (torch.inf, 1.0))
    assert_close(told, looked, "value")


def test_ids_of_nobody_leave_nothing_out(engine: str) -> None:
    x, keys = rows(63, 7), rows(17, 7, seed=1)
    nobody = torch.full((len(keys),), -1)
    value = pairwise.logsumexp(x, keys, scale=10.0, ids=torch.arange(63), key_ids=nobody, backend=engine)
    assert_close(value, oracle.logsumexp(x, keys, 10.0), "value")


@pytest.mark.parametrize("scale", [-3.0, 0.1, 10.0, 200.0])
def test_one_row_with_keys(scale: float, engine: str) -> None:
    """Its gradient reaches no row that has no keys."""
    x, s = rows(5, 3), torch.tensor(scale, dtype=torch.float64)
    key_ids = torch.tensor([0, 0])
    keys = rows(2, 3, seed=1)
    value = pairwise.logsumexp(x, keys, scale=s, ids=torch.tensor([0, 0, 1, 0, 0]), key_ids=key_ids, backend=engine)
    assert value.isinf().tolist() == [True, True, False, True, True]
    gradient = torch.autograd.grad(value, x, weights(5))[0]
    assert gradient.any(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("scale", [1.0, 200.0, 1e4])
def test_extreme_logits(scale: float, engine: str) -> None:
    """Opposite, orthogonal and equal rows: the exact logarithm where exponentials overflow or vanish."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = pairwise.logsumexp(x, scale=scale, backend=engine)
    assert_close(value, oracle.logsumexp(x.double(), x.double(), scale, range(4), range(4)), "value", logit=scale)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()
