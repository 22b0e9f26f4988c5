"""`torch.compile` passes through the sums in one graph, gives the same numbers, and compiles once for all sizes."""

from collections.abc import Callable

import pytest
import torch
from cases import rows, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise

SWEEPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "self": lambda x, keys, scale: pairwise.logsumexp(x, scale=scale, ids=torch.arange(len(x)) // 2),
    "keys": lambda x, keys, scale: pairwise.logsumexp(x, keys, scale=scale),
    "two scales": lambda x, keys, scale: pairwise.logsumexp(x, scale=(scale, 2 * scale)).sum(0),
    "scale per row": lambda x, keys, scale: pairwise.logsumexp(x, scale=scale.expand(len(x))),
    "both": lambda x, keys, scale: torch.cat(pairwise.logsumexp_both(x, keys, scale=scale)),
    "mean": lambda x, keys, scale: pairwise.logsumexp_with_mean(x, keys, scale=scale.expand(len(x)))[0],
    "squares": lambda x, keys, scale: pairwise.square_sum(x, keys[3:]) * scale,
    "kernel": lambda x, keys, scale: pairwise.kernel_sum(x, kernel="log", parameter=2.0) * scale,
    "softplus": lambda x, keys, scale: pairwise.softplus_sum(x, keys, scale=scale, bias=-scale),
    "softplus, self": lambda x, keys, scale: pairwise.softplus_sum(x, scale=scale, bias=x[:, 0]),
    "softplus within": lambda x, keys, scale: pairwise.softplus_sum_within(
        x, ids=torch.arange(len(x)) // 2, scale=scale, bias=x[:, 0]
    ),
}
OUTCOME = ("value", "gradient of rows", "gradient of keys", "gradient of scale")
every_sweep = pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)


def outcome(sweep: Callable[[Tensor, Tensor, Tensor], Tensor], size: int) -> tuple[Tensor, ...]:
    x, keys, scale = rows(size, 5), rows(size + 3, 5, seed=1), torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    value = sweep(x, keys, scale)
    found = torch.autograd.grad(value, (x, keys, scale), weights(*value.shape), materialize_grads=True)
    return value, *found


def assert_compiled_equals_eager(compiled: Callable[..., Tensor], sweep: Callable[..., Tensor], size: int) -> None:
    for name, actual, expected in zip(OUTCOME, outcome(compiled, size), outcome(sweep, size), strict=True):
        assert_close(actual, expected, name, magnitude=1.0)


@every_sweep
@pytest.mark.usefixtures("_compiler")
def test_compiled_equals_eager_and_the_second_compilation_serves_all_sizes(sweep: Callable[..., Tensor]) -> None:
    compiled = torch.compile(sweep, backend="aot_eager", fullgraph=True)
    for size in (3, 63):
        assert_compiled_equals_eager(compiled, sweep, size)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (64, 111, 8):
            assert_compiled_equals_eager(compiled, sweep, size)


@pytest.mark.usefixtures("_compiler")
def test_the_dense_backend_compiles_too() -> None:
    def sweep(x: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
        return pairwise.logsumexp(x, keys, scale=scale, backend="dense")

    compiled = torch.compile(sweep, backend="aot_eager", fullgraph=True)
    assert_compiled_equals_eager(compiled, sweep, 63)


@pytest.mark.usefixtures("_compiler")
def test_a_second_derivative_is_refused_when_compiled() -> None:
    compiled = torch.compile(SWEEPS["self"], backend="eager", fullgraph=True)
    x = rows(6, 3)
    (first,) = torch.autograd.grad(compiled(x, x, torch.tensor(2.0)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="Use backend='dense'"):
        torch.autograd.grad(first.square().sum(), x)
