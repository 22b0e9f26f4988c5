"""The tiled backend never holds the matrix of pairs."""

from collections.abc import Callable

import pytest
import torch
from operations import OPERATIONS, Operation, every_form, leaves
from torch.profiler import ProfilerActivity, profile

ROWS, WIDTH = 4096, 8
MATRIX = ROWS * ROWS * 4


def largest_allocation(step: Callable[[], None]) -> int:
    """Bytes of the largest tensor made in a step, those inside of operators included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return max(event.self_cpu_memory_usage for event in profiler.events())


def forward_and_backward(operation: Operation, backend: str, kind: str = "views") -> int:
    given = leaves(ROWS, WIDTH, dtype=torch.float32)
    return largest_allocation(lambda: operation(given, kind, backend=backend).sum().backward())


@every_form
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_auto_makes_nothing_near_the_matrix(operation: Operation, backend: str) -> None:
    assert forward_and_backward(operation, backend, "few" if operation.within else "views") < MATRIX / 32


def test_nor_do_squares_of_one_id() -> None:
    assert forward_and_backward(OPERATIONS["square_sum"], "tiled", "equal") < MATRIX / 32


def test_the_measure_sees_the_matrix_of_the_dense_backend() -> None:
    assert forward_and_backward(OPERATIONS["logsumexp"], "dense") >= MATRIX
