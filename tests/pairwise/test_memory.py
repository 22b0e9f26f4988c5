"""The tiled backend never holds the matrix of pairs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from contrastive_zoo import pairwise

ROWS, WIDTH = 4096, 8
MATRIX = ROWS * ROWS * 4
SWEEPS: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "self": lambda x, keys, backend: pairwise.logsumexp(x, scale=10.0, ids=torch.arange(ROWS) // 2, backend=backend),
    "keys": lambda x, keys, backend: pairwise.logsumexp(
        x, keys, scale=10.0, ids=torch.arange(ROWS), key_ids=torch.arange(ROWS), backend=backend
    ),
    "tiny temperature": lambda x, keys, backend: pairwise.logsumexp(x, scale=200.0, backend=backend),
    "two scales": lambda x, keys, backend: pairwise.logsumexp(x, scale=(1.0, 10.0), backend=backend).sum(0),
    "scale per row": lambda x, keys, backend: pairwise.logsumexp(x, scale=torch.full((ROWS,), 10.0), backend=backend),
    "both": lambda x, keys, backend: sum(pairwise.logsumexp_both(x, keys, scale=10.0, backend=backend)),
    "mean": lambda x, keys, backend: pairwise.logsumexp_with_mean(x, scale=torch.full((ROWS,), 10.0), backend=backend)[0],
    "squares": lambda x, keys, backend: pairwise.square_sum(x, keys, ids=torch.arange(ROWS) // 2, backend=backend),
    "squares, one id": lambda x, keys, backend: pairwise.square_sum(x, keys, ids=torch.zeros(ROWS).long(), backend=backend),
    "kernel": lambda x, keys, backend: pairwise.kernel_sum(x, kernel="gaussian", parameter=2.0, backend=backend),
    "softplus": lambda x, keys, backend: pairwise.softplus_sum(x, keys, scale=10.0, bias=-10.0, backend=backend),
    "softplus within": lambda x, keys, backend: pairwise.softplus_sum_within(
        x, ids=torch.arange(ROWS) % 3, scale=-1.0, bias=x[:, 0], backend=backend
    ),
}


def largest_allocation(step: Callable[[], None]) -> int:
    """Bytes of the largest tensor made in a step, those inside of operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return max(event.self_cpu_memory_usage for event in profiler.events())


def forward_and_backward(sweep: Callable[[Tensor, Tensor, str], Tensor], backend: str) -> int:
    x, keys = torch.nn.functional.normalize(torch.randn(2, ROWS, WIDTH), dim=2).requires_grad_().unbind()
    return largest_allocation(lambda: sweep(x, keys, backend).sum().backward())


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
def test_tiled_makes_nothing_near_the_matrix(sweep: Callable[[Tensor, Tensor, str], Tensor]) -> None:
    assert forward_and_backward(sweep, "tiled") < MATRIX / 32


def test_the_measure_sees_the_matrix_of_the_dense_backend() -> None:
    assert forward_and_backward(SWEEPS["self"], "dense") >= MATRIX
