"""Rows that are too wide for one tile, by the fused backend: right for every option, in bounded memory, at any offset."""

from typing import Any

import pytest
import torch
from cases import rows
from exactness import assert_as_exact_as_dense, assert_as_exact_as_dense_in_half, exact, single
from launches import Recorder
from operations import OPERATIONS, OUTCOME, Operation, every_form
from tolerances import assert_close

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise import sweep
from contrastive_zoo.pairwise.fused import launch
from contrastive_zoo.pairwise.fused.shapes import Shape
from contrastive_zoo.pairwise.sweep import Bound

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def _several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SLAB", 16)
    monkeypatch.setattr(launch, "shape_of", lambda *_: Shape(16, 16, 4, 2))


@every_form
def test_value_and_gradients(operation: Operation) -> None:
    assert_as_exact_as_dense(operation, single(21, 300), "views")


@every_form
@pytest.mark.usefixtures("_several_slabs")
def test_several_slabs(operation: Operation) -> None:
    assert_as_exact_as_dense(operation, single(25, 130), "few")


# Of log-sum-exps, slopes of 256 features still fit into a tile in float16.
@every_form
def test_half_precision(operation: Operation) -> None:
    assert_as_exact_as_dense_in_half(operation, 20, 260, "views")


@pytest.mark.parametrize(
    "name", ["logsumexp, sets", "logsumexp_both", "softplus_sum, keys", "kernel_sum, riesz(1.0), any rows"]
)
@pytest.mark.usefixtures("_several_slabs")
def test_parts_make_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, whole = OPERATIONS[name], OPERATIONS[name].whole
    assert whole is not None
    monkeypatch.setattr(sweep, "GRAIN", 4)

    def summed(*given: Any) -> torch.Tensor:
        return whole(torch.stack([operation.call(*given, part=(p, 3), backend="fused") for p in range(3)]))

    found = operation._replace(call=summed).outcome(single(21, 130), "few")
    wanted = operation.outcome(exact(single(21, 130)), "few")
    for what, a, b in zip(OUTCOME, found, wanted, strict=True):
        assert_close(a, b, what, dtype=torch.float32, logit=10 * operation.logit, magnitude=operation.magnitude)


@pytest.mark.parametrize("width", [512, 768, 4096])
def test_usual_widths(width: int) -> None:
    assert_as_exact_as_dense(OPERATIONS["logsumexp_both"], single(5, width), "none")


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
    for size, width, operand in ((20_000, 300, None), (6000, 1024, torch.bfloat16), (2000, 4096, None)):
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


# Beyond what 32 bits count. Pages of the memory that nothing writes to are never there.
FAR = 2**31 + 2**20


def room_for(numel: int) -> torch.Tensor:
    """Memory that nothing has written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        try:
            return torch.empty(numel)
        except RuntimeError:
            pytest.skip("there is no room for 8 GiB, of which little is used")


def far_apart(x: torch.Tensor) -> torch.Tensor:
    """The same entries, with the last along the first dimension FAR from the first."""
    distance, room = FAR // (len(x) - 1), room_for(FAR + 2 * x[0].numel())
    return room.as_strided(x.shape, (distance, *x[0].stride())).copy_(x.detach()).requires_grad_()


@pytest.mark.parametrize("width", [8, 130])
@pytest.mark.parametrize("name", ["rows", "keys", "sets"])
def test_offsets_have_64_bits(name: str, width: int) -> None:
    x, keys = rows(3, width, dtype=torch.float32), rows(3, width, seed=1, dtype=torch.float32)

    def outcome(x: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if name == "sets":
            sets = x.unflatten(1, (2, -1))
            value = pairwise.kernel_sum(sets, kernel="imq", parameter=1.0, backend="fused")
            return value.detach(), *torch.autograd.grad(value.square().sum(), x)
        value = pairwise.logsumexp(x, keys, scale=3.0, backend="fused")
        return value.detach(), *torch.autograd.grad(value.square().sum(), (x, keys))

    far = outcome(x, far_apart(keys)) if name == "keys" else outcome(far_apart(x), keys)
    for found, wanted in zip(far, outcome(x, keys), strict=True):
        assert torch.equal(found, wanted)


def test_gradients_of_many_wide_rows_end_beyond_32_bits() -> None:
    from contrastive_zoo.pairwise.fused import kernels

    width, length = 4096, 5
    rows_before = FAR // width
    out = room_for((rows_before + 3) * width).view(-1, width)
    out[rows_before:] = 1.0
    slab, y = torch.randn(3, length), torch.randn(length, width)
    bounds = rows_before, rows_before + 3, 0, length
    flags = {"D": width, "WIDTH": 1024, "BM": 16, "BN": 16, "PRECISION": "ieee", "TERM": 0}
    arguments = slab, y, torch.tensor([4096.0]), out, None, len(out), 0, width
    kernels.products[(1, width // 1024, 1)](*arguments, *bounds, **flags)
    assert torch.allclose(out[rows_before:], 1 + slab @ y, atol=1e-5)
