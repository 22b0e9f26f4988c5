"""`torch.compile` passes through the sums in one graph, gives the same numbers, and compiles once for all sizes."""

from collections.abc import Callable

import pytest
import torch
from cases import rows
from operations import OPERATIONS, OUTCOME, Operation, every_form, leaves
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise


def compiled(operation: Operation, **options: str) -> Callable[..., Tensor]:
    function = operation.call
    return torch.compile(lambda *given: function(*given, **options), backend="aot_eager", fullgraph=True)


def assert_equal_to_eager(function: Callable[..., Tensor], operation: Operation, size: int) -> None:
    found, wanted = operation._replace(call=function).outcome(leaves(size, 5)), operation.outcome(leaves(size, 5))
    for name, actual, expected in zip(OUTCOME, found, wanted, strict=True):
        assert_close(actual, expected, name, logit=200.0, magnitude=float(size))


@every_form
@pytest.mark.usefixtures("_compiler")
def test_compiled_equals_eager_and_the_second_compilation_serves_all_sizes(operation: Operation) -> None:
    function = compiled(operation)
    for size in (3, 63):
        assert_equal_to_eager(function, operation, size)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (64, 8):
            assert_equal_to_eager(function, operation, size)


@pytest.mark.usefixtures("_compiler")
def test_the_dense_backend_compiles_too() -> None:
    operation = OPERATIONS["logsumexp, keys"]
    assert_equal_to_eager(compiled(operation, backend="dense"), operation, 63)


@pytest.mark.usefixtures("_compiler")
def test_a_second_derivative_is_refused_when_compiled() -> None:
    function = torch.compile(lambda x: pairwise.logsumexp(x, scale=2.0), backend="eager", fullgraph=True)
    x = rows(6, 3)
    (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="Use backend='dense'"):
        torch.autograd.grad(first.square().sum(), x)
