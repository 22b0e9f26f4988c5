"""Rows that are too wide for one tile, by the fused backend: right for every option, in bounded memory, at any offset."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import rows
from exactness import assert_as_exact_as_dense, assert_as_exact_as_dense_in_half, exact, single
from launches import Recorder
from operations import FORMS, OPERATIONS, OUTCOME, Operation, every_form
from tolerances import assert_close

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise import sweep
from contrastive_zoo.pairwise.fused import launch, shapes
from contrastive_zoo.pairwise.fused.shapes import Shape
from contrastive_zoo.pairwise.sweep import Bound

pytestmark = pytest.mark.usefixtures("kernels")

# Slabs of slopes: all at once, or several in both directions.
SLABS = {"one slab": 4096, "many slabs": 16}


@pytest.fixture(params=SLABS)
def slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(launch, "SLAB", SLABS[request.param])
    monkeypatch.setattr(launch, "shape_of", lambda *_: Shape(16, 16, 4, 2))
    yield request.param


@every_form
@pytest.mark.parametrize(("shape", "kind"), [((17, 300), "views"), ((40, 130), "few")], ids=str)
def test_value_and_gradients(operation: Operation, shape: tuple[int, int], kind: str, slabs: str) -> None:
    assert_as_exact_as_dense(operation, single(*shape), kind)


# In float16 rows of 256 features fit into a tile where slopes do.
@every_form
def test_half_precision(operation: Operation) -> None:
    if operation.whole is None and "square" not in str(operation):
        pytest.skip("means are those of other operations")
    assert_as_exact_as_dense_in_half(operation, 20, 260, "views")


@pytest.mark.parametrize("name", [name for name, operation in FORMS.items() if operation.whole is not None])
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_make_the_whole(name: str, parts: int, slabs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, whole = FORMS[name], FORMS[name].whole
    assert whole is not None
    monkeypatch.setattr(sweep, "GRAIN", 8)

    def summed(*given: Any) -> torch.Tensor:
        return whole(torch.stack([operation.call(*given, part=(p, parts), backend="fused") for p in range(parts)]))

    found = operation._replace(call=summed).outcome(single(37, 130), "few")
    wanted = operation.outcome(exact(single(37, 130)), "few")
    for what, a, b in zip(OUTCOME, found, wanted, strict=True):
        assert_close(a, b, what, dtype=torch.float32, logit=10 * operation.logit, magnitude=operation.magnitude)


@pytest.mark.parametrize("width", [512, 768, 4096])
def test_usual_widths(width: int) -> None:
    assert_as_exact_as_dense(OPERATIONS["logsumexp_both"], single(9, width), "none")


def test_a_gradient_takes_four_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair is in one slab, for any width: similarities and slopes are computed once for each side."""
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    monkeypatch.setattr(launch, "SLAB", 8)
    for width in (300, 4096):
        x, keys = rows(20, width, dtype=torch.float32), rows(13, width, seed=1, dtype=torch.float32)
        value = torch.cat(pairwise.logsumexp_both(x, keys, scale=1.0, backend="fused"))
        seen.clear()
        torch.autograd.grad(value.sum(), (x, keys))
        slabs = [arguments[21:25] for name, arguments in seen if name == "slopes"]
        assert [arguments[8:12] for name, arguments in seen if name == "products"] == slabs
        area = sum((high - low) * (stop - start) for low, high, start, stop in slabs)
        assert area == 2 * 20 * 13


def test_slopes_are_not_stored_all_at_once() -> None:
    """Their bytes are bounded by those of two gradients."""
    for size, width, operand in ((40_000, 300, None), (40_000, 1024, torch.bfloat16), (3000, 4096, None)):
        numel = largest_slab(size, width, operand)
        assert numel * (2 if operand else 4) <= max(launch.SLAB_BYTES, 2 * size * width * 4)
        assert numel <= launch.SLAB**2


def largest_slab(size: int, width: int, operand: torch.dtype | None) -> int:
    """Entries of the slab of a gradient, without computing it."""
    seen: list[tuple[str, tuple[Any, ...]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_kernels", lambda: Recorder(seen))
        x = torch.empty(1, 1).expand(size, width).requires_grad_()
        # Strides of 0 need no memory.
        value = pairwise.logsumexp(x, scale=1.0, norm_bound=Bound(1.0, operand), backend="fused")
        torch.autograd.grad(value.sum(), x)
    return max(arguments[0].numel() for name, arguments in seen if name == "products")
