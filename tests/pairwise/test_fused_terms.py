"""Sums of softplus, kernels and squares by the fused backend, in Triton's interpreter or on a GPU: right for every option."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import rows, weights
from exactness import assert_as_exact_as_dense, assert_as_exact_as_dense_in_half, exact, single
from hypothesis import given
from hypothesis import strategies as st
from launches import Recorder, Work
from operations import FORMS, IDS, OPERATIONS, OUTCOME, Leaves, Operation
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise import sweep
from contrastive_zoo.pairwise.fused import arguments, launch
from contrastive_zoo.pairwise.fused.shapes import Shape
from contrastive_zoo.pairwise.sweep import Ids

pytestmark = pytest.mark.usefixtures("kernels")

# The gaussian kernel of unit rows is a log-sum-exp.
SERVED = {
    name: operation for name, operation in OPERATIONS.items() if "logsumexp" not in name and "gaussian(2.0), unit" not in name
}
every_operation = pytest.mark.parametrize("operation", SERVED.values(), ids=SERVED)
SIZES = [((2, 1), "alone"), ((2, 3), "equal"), ((17, 33), "views"), ((50, 5), "one large class"), ((21, 200), "int32")]

# From how many pairs on rows are ordered by id, and the tiles of all kernels.
TILES = {"large tiles": (2**60, Shape(64, 128, 4, 2)), "small tiles, ordered": (0, Shape(32, 16, 4, 2))}


@pytest.fixture(params=TILES)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    many, shape = TILES[request.param]
    monkeypatch.setattr(launch, "MANY_PAIRS", many)
    if many == 0 or torch.get_default_device().type != "cuda":  # a GPU has its own, as large as fit
        monkeypatch.setattr(launch, "shape_of", lambda *_: shape)
    return str(request.param)


@every_operation
@pytest.mark.parametrize(("shape", "kind"), SIZES, ids=str)
def test_value_and_gradients(operation: Operation, shape: tuple[int, int], kind: str, tiles: str) -> None:
    if tiles != "large tiles" and shape[0] < 17:
        pytest.skip("fits into one tile")
    assert_as_exact_as_dense(operation, single(*shape), kind)


@every_operation
@pytest.mark.parametrize(("shape", "kind"), [((1, 4), "alone"), ((40, 33), "few")], ids=str)
def test_half_precision(operation: Operation, shape: tuple[int, int], kind: str) -> None:
    assert_as_exact_as_dense_in_half(operation, *shape, kind)


@every_operation
def test_rows_without_keys(operation: Operation) -> None:
    kind = "alone" if operation.within else "equal"
    found = operation.outcome(single(5, 7), kind, backend="fused")
    for value, wanted in zip(found, operation.outcome(single(5, 7), kind, backend="dense"), strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("name", [name for name, operation in FORMS.items() if name in SERVED and operation.whole is not None])
def test_parts_make_the_whole(name: str, tiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if parts begin inside a tile, or are empty."""
    operation, whole = SERVED[name], SERVED[name].whole
    assert whole is not None
    monkeypatch.setattr(sweep, "GRAIN", 8)

    def summed(*given: Any) -> Tensor:
        return whole(torch.stack([operation.call(*given, part=(p, 3), backend="fused") for p in range(3)]))

    found, wanted = (
        operation._replace(call=summed).outcome(single(43, 7), "few"),
        operation.outcome(exact(single(43, 7)), "few"),
    )
    for what, a, b in zip(OUTCOME, found, wanted, strict=True):
        assert_close(a, b, what, dtype=torch.float32, logit=10 * operation.logit, magnitude=operation.magnitude)


@given(
    operation=st.sampled_from(list(SERVED.values())),
    size=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.sampled_from([-3.0, 0.0, 0.1, 20.0]),
    kind=st.sampled_from(list(IDS)),
    seed=st.integers(0, 2**16),
)
def test_fused_equals_dense(operation: Operation, size: int, width: int, scale: float, kind: str, seed: int) -> None:
    assert_as_exact_as_dense(operation, single(size, width, scale=scale, seed=seed), kind)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("t", [1.0, -1.5])
def test_equal_rows_get_no_gradient_from_rounding(t: float, unit: bool, tiles: str) -> None:
    """Their distance is the floor, in which there is no gradient; so are values those of other backends."""
    x = rows(20, 33, dtype=torch.float32, unit=unit).detach()
    x = torch.cat([x, x]).requires_grad_()
    outcomes = []
    for backend in ("fused", "tiled"):
        value = pairwise.kernel_sum(x, kernel="riesz", parameter=t, unit_rows=unit, backend=backend)
        outcomes.append((value.detach(), *torch.autograd.grad(value, x, weights(40, dtype=torch.float32))))
    for found, wanted in zip(*outcomes, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [33, 200])
def test_slopes_of_kernels_may_exceed_the_range_of_half_precision(width: int) -> None:
    """Those of near rows, with a scaled loss."""
    x = rows(20, width, dtype=torch.float16).detach()
    near, known = torch.cat([x, (x.float() * 1.05).half()]).float(), {"kernel": "riesz", "parameter": 2.0}
    gradients = []
    for leaf, backend in ((near.requires_grad_(), "fused"), (near.detach().double().requires_grad_(), "dense")):
        value = pairwise.kernel_sum(leaf, rounding=torch.finfo(torch.float16).eps, backend=backend, **known)
        gradients += torch.autograd.grad(2.0**10 * value.sum(), leaf)
    found, wanted = gradients
    assert found.abs().max() > 65504
    assert float((found - wanted).norm()) <= 5e-3 * float(wanted.norm())


@pytest.mark.parametrize("width", [33, 200])
def test_squares_may_exceed_the_range_of_half_precision(width: int) -> None:
    x = (300 * rows(5, width, dtype=torch.float16)).detach()
    assert float(x[0].float() @ x[0].float()) > 65504
    gradients = []
    for leaf, backend in ((x.clone().requires_grad_(), "fused"), (x.double().requires_grad_(), "dense")):
        value = pairwise.square_sum(leaf, leaf.detach().flip(0), backend=backend)
        gradients += torch.autograd.grad(2.0**-10 * value.sum(), leaf)
    found, wanted = gradients
    assert found.dtype == torch.float16
    assert float((found - wanted).norm()) <= 2e-3 * float(wanted.norm())


@pytest.mark.parametrize("there", [False, True])
def test_scales_and_biases_that_all_rows_share(there: bool, tiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, and tensors that kernels read."""
    x, keys = rows(37, 5, dtype=torch.float32), rows(21, 5, seed=1, dtype=torch.float32)
    if there:
        monkeypatch.setattr(arguments, "_scale", lambda scale, x: (scale.float(), 1))
    outcomes = []
    for backend in ("fused", "dense"):
        scale, bias = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))
        value = pairwise.softplus_sum(x, keys, scale=scale, bias=bias, backend=backend)
        fixed = pairwise.softplus_sum(x, keys, scale=10.0, bias=-10.0, backend=backend)
        assert_close(fixed, value.detach(), "without gradients")
        outcomes.append((value.detach(), *torch.autograd.grad(value, (x, keys, scale, bias), weights(37, dtype=torch.float32))))
    for what, found, wanted in zip(("value", "x", "keys", "scale", "bias"), *outcomes, strict=True):
        assert_close(found, wanted, what, magnitude=float(wanted.abs().max()))


def test_small_softplus_is_exact() -> None:
    """log(1 + e^z) for z = -20 is 2e-9, which 1 + e^z does not hold."""
    x = rows(5, 3, dtype=torch.float32).detach()
    found = pairwise.softplus_sum(x, scale=0.0, bias=-20.0, backend="fused")
    assert torch.allclose(found, torch.full((5,), 4.0, dtype=torch.float64).mul(torch.tensor(-20.0).double().exp()).float())


def test_a_promise_of_equal_upstream_gradients_is_not_needed() -> None:
    x = rows(20, 5, dtype=torch.float32)
    found = []
    for uniform in (True, False):
        value = pairwise.softplus_sum(x, scale=3.0, uniform=uniform, backend="fused")
        found.append(torch.autograd.grad(value, x, weights(20, dtype=torch.float32))[0])
    assert torch.equal(*found)


def test_ids_that_are_known_are_those_that_are_read() -> None:
    values = torch.arange(70) // 2
    for x in (rows(70, 7, dtype=torch.float32), torch.stack([rows(70, 7, seed=seed, dtype=torch.float32) for seed in (0, 1)])):
        known, read = (
            pairwise.kernel_sum(x, kernel="imq", parameter=1.0, ids=ids, backend="fused") for ids in (Ids(values, 2), values)
        )
        assert torch.equal(known, read)


def test_ordered_rows_visit_only_tiles_that_hold_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a number elsewhere does not reach them."""
    monkeypatch.setattr(launch, "MANY_PAIRS", 0)
    monkeypatch.setattr(launch, "shape_of", lambda *_: Shape(16, 16, 4, 2))
    x, ids = rows(160, 5, dtype=torch.float32).detach(), torch.arange(160) // 16
    x[80:] = torch.nan
    value = pairwise.softplus_sum_within(x, ids=ids, scale=1.0, backend="fused")
    assert value[:80].isfinite().all()
    monkeypatch.setattr(launch, "MANY_PAIRS", 2**60)
    again = pairwise.softplus_sum_within(x, ids=ids, scale=1.0, backend="fused")
    assert torch.equal(value[:80], again[:80])


# By use: the call, and whether keys get a gradient too.
LAUNCHES: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "negatives of siglip": (
        lambda x, keys, **known: pairwise.softplus_sum(x, keys, scale=2.0, bias=x.new_tensor(1), **known),
        True,
    ),
    "positives of scl": (
        lambda x, keys, **known: pairwise.softplus_sum_within(x, ids=torch.arange(6) // 2, scale=2.0, **known),
        False,
    ),
    "riesz kernel": (
        lambda x, keys, **known: pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, unit_rows=True, **known),
        False,
    ),
    "squares": (lambda x, keys, **known: pairwise.square_sum(x, keys, ids=torch.arange(6) // 2, **known), True),
}


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize(("width", "kernels_per_side"), [(3, ["gradients"]), (200, ["slopes", "products"])])
def test_number_of_launches(name: str, width: int, kernels_per_side: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All are kernels of this package, but a gradient of wide rows starts as zeros; a side without gradient costs none."""
    call, keyed = LAUNCHES[name]
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    x, keys = (rows(6, width, seed=seed, dtype=torch.float32) for seed in (0, 1))
    for wanted in ([x], [keys], [x, keys]) if keyed else ([x],):
        for leaf in (x, keys):
            leaf.requires_grad_(any(leaf is each for each in wanted))
        seen.clear()
        value = call(x, keys, backend="fused")
        assert [name for name, _ in seen] == ["sums"]
        seen.clear()
        with Work() as backward:
            torch.autograd.grad(value, wanted, torch.ones(()).expand_as(value))
        assert [name for name, _ in seen] == ["weigh", *kernels_per_side * len(wanted)]
        assert [name for name in backward.seen if name != "ones"] == ["zeros"] * len(wanted) * (width > 128)


def test_gradients_of_scale_and_bias_need_no_pass_over_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(launch, "_kernels", lambda: Recorder(seen))
    x, keys = rows(6, 3, dtype=torch.float32).detach(), rows(5, 3, seed=1, dtype=torch.float32).detach()
    scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    value = pairwise.softplus_sum(x, keys, scale=scale, bias=bias, backend="fused")
    torch.autograd.grad(value.sum(), (scale, bias))
    assert [name for name, _ in seen] == ["sums"]


def test_repetition_strides_and_autocast_do_not_matter() -> None:
    operation: Operation = SERVED["softplus_sum, keys"]
    given = single(63, 7)
    expected = operation.outcome(given, "few", backend="fused")
    apart = Leaves(*(torch.stack([t.detach(), -t.detach()], -1)[..., 0].requires_grad_() for t in given))
    with torch.autocast(given.x.device.type, dtype=torch.bfloat16):
        again = operation.outcome(given, "few", backend="fused")
    for found in (operation.outcome(apart, "few", backend="fused"), again):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
