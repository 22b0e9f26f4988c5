"""Value and every gradient of the sums of softplus against the double loop, for all backends, at awkward sizes."""

from collections.abc import Callable
from functools import cache

import oracle
import pytest
import torch
from cases import DTYPES, SIZES, rows, weights
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Softplus
from contrastive_zoo.pairwise.tiled import tiles
from contrastive_zoo.pairwise.tiled.terms import on_tiles
from contrastive_zoo.pairwise.tiled.tiles import Tiles

IDS = {
    "different": lambda size: torch.arange(size),
    "views": lambda size: torch.arange(size) // 2,
    "few": lambda size: torch.arange(size) * 7 % 5 - 2,
    "equal": lambda size: torch.full((size,), 3),
    "one large class": lambda size: torch.arange(size).clamp(max=size // 3).flip(0),
    "int32": lambda size: torch.arange(size, dtype=torch.int32).flip(0) // 3,
}
SHAPES_AND_IDS = [(shape, ids) for shape in SIZES[:-1] for ids in IDS] + [(SIZES[-1], "views")]
PAIRS = ["self", "keys", "within"]
# Scale and bias: moderate, the start and the end of SigLIP, the sign of positives, logits far from what e^z can hold.
LOGITS = [(0.0, 0.5), (10.0, -10.0), (100.0, -12.0), (-1.0, 0.3), (-300.0, 20.0), (300.0, 0.0)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_kind = pytest.mark.parametrize("pairs", PAIRS)


def leaves(shape: tuple[int, int], scale: float, bias: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Rows, keys, scale and a bias per row that is the given one on average."""
    spread = bias + torch.linspace(-1, 1, shape[0], dtype=torch.float64) if shape[0] > 1 else torch.tensor([bias]).double()
    return (
        rows(*shape, dtype=dtype),
        rows(shape[0] // 2 + 1, shape[1], seed=1, dtype=dtype),
        torch.tensor(scale, dtype=torch.float64, requires_grad=True),
        spread.to(dtype).requires_grad_(),
    )


def swept(pairs: str, ids: str, x: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, backend: str) -> Tensor:
    arguments = {"scale": scale, "bias": bias, "ids": IDS[ids](len(x)), "backend": backend}
    if pairs == "within":
        return pairwise.softplus_sum_within(x, **arguments)
    if pairs == "keys":
        return pairwise.softplus_sum(x, keys, key_ids=IDS[ids](len(keys)), **arguments)
    return pairwise.softplus_sum(x, **arguments)


@cache
def expected(pairs: str, ids: str, shape: tuple[int, int], scale: float, bias: float) -> tuple[Tensor, ...]:
    """Value; gradients of rows, keys, scale and bias."""
    x, keys, s, b = leaves(shape, scale, bias)
    others = keys if pairs == "keys" else x
    own, theirs = IDS[ids](len(x)).tolist(), IDS[ids](len(others)).tolist()
    counts: Callable[[int, int], bool] = lambda i, j: own[i] != theirs[j]  # noqa: E731
    if pairs == "within":
        counts = lambda i, j: own[i] == own[j] and i != j  # noqa: E731
    value = oracle.softplus_sum(x, others, s, b.unbind(), counts)
    return value.detach(), *torch.autograd.grad(value, (x, keys, s, b), weights(len(x)), materialize_grads=True)


def check(pairs: str, ids: str, shape: tuple[int, int], scale: float, bias: float, backend: str, dtype: torch.dtype) -> None:
    tensors = leaves(shape, scale, bias, dtype)
    value = swept(pairs, ids, *tensors, backend=backend)
    found = torch.autograd.grad(value, tensors, weights(len(value), dtype=dtype), materialize_grads=True)
    logit, reference = abs(scale) + abs(bias), expected(pairs, ids, shape, scale, bias)
    magnitude = max(abs(scale), 1.0)
    for name, actual, wanted in zip(("value", "rows", "keys", "scale", "bias"), (value, *found), reference, strict=True):
        assert_close(actual, wanted, name, dtype=dtype, logit=max(logit, 10.0), magnitude=magnitude)


@dtypes
@every_kind
@pytest.mark.parametrize(("shape", "ids"), SHAPES_AND_IDS, ids=str)
def test_shapes_and_ids(shape: tuple[int, int], ids: str, pairs: str, engine: str, dtype: torch.dtype) -> None:
    check(pairs, ids, shape, 3.0, -0.5, engine, dtype)


@dtypes
@every_kind
@pytest.mark.parametrize(("scale", "bias"), LOGITS)
def test_scales_and_biases(scale: float, bias: float, pairs: str, engine: str, dtype: torch.dtype) -> None:
    check(pairs, "few", (63, 7), scale, bias, engine, dtype)


@dtypes
@every_kind
def test_a_known_bound_changes_nothing(pairs: str, dtype: torch.dtype) -> None:
    """Neither one that shows the sweep to be bounded, nor one that does not."""
    x, keys, scale, bias = (leaf.detach() for leaf in leaves((63, 7), 30.0, 1.0, dtype))
    found = []
    for norm_bound in (torch.inf, 1.01, 100.0):
        arguments = {"scale": scale, "bias": bias, "norm_bound": norm_bound}
        if pairs == "within":
            found.append(pairwise.softplus_sum_within(x, ids=IDS["few"](63), **arguments))
        else:
            found.append(pairwise.softplus_sum(x, keys if pairs == "keys" else None, **arguments))
    for value in found[1:]:
        assert_close(value, found[0], "value", logit=30.0)


def test_without_ids_every_row_is_by_itself_and_no_key_is_left_out(engine: str) -> None:
    x, keys, *_ = leaves((63, 7), 1.0, 0.0)
    log1p = torch.nn.functional.softplus
    similarity = x @ x.T
    expected_self = (log1p(2 * similarity + 0.5) * ~torch.eye(63, dtype=torch.bool)).sum(1)
    assert_close(pairwise.softplus_sum(x, scale=2.0, bias=0.5, backend=engine), expected_self, "self")
    expected_keys = log1p(2 * x @ keys.T + 0.5).sum(1)
    assert_close(pairwise.softplus_sum(x, keys, scale=2.0, bias=0.5, backend=engine), expected_keys, "keys")


@every_kind
def test_rows_without_pairs_have_the_sum_zero(pairs: str, engine: str) -> None:
    tensors = leaves((5, 3), 2.0, 1.0)
    value = swept(pairs, "different" if pairs == "within" else "equal", *tensors, backend=engine)
    assert torch.equal(value, torch.zeros_like(value))
    for gradient in torch.autograd.grad(value, tensors, weights(5), materialize_grads=True):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_bias_for_all_rows_gets_the_sum_of_gradients(engine: str) -> None:
    x, keys, scale, _ = leaves((63, 7), 2.0, 0.0)
    single = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    per_row = torch.full((63,), 0.7, dtype=torch.float64, requires_grad=True)
    found = [
        torch.autograd.grad(pairwise.softplus_sum(x, keys, scale=scale, bias=bias, backend=engine), bias, weights(63))[0]
        for bias in (single, per_row)
    ]
    assert_close(found[0], found[1].sum(), "gradient of the bias", magnitude=10.0)


@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "self"])
def test_a_promise_of_equal_upstream_gradients_changes_nothing(keyed: bool, engine: str) -> None:
    tensors = leaves((63, 7), 10.0, -3.0)
    x, keys, scale, bias = tensors
    arguments = {"keys": keys if keyed else None, "scale": scale, "bias": bias, "backend": engine}
    found = []
    for uniform in (True, False):
        value = pairwise.softplus_sum(x, uniform=uniform, **arguments)
        found.append((value, *torch.autograd.grad(-0.3 * value.sum(), tensors, materialize_grads=True)))
    for name, promised, free in zip(("value", "rows", "keys", "scale", "bias"), *found, strict=True):
        assert_close(promised, free, name, magnitude=10.0)


def test_a_broken_promise_is_an_error() -> None:
    x = rows(5, 3)
    value = pairwise.softplus_sum(x, scale=1.0, uniform=True)
    with pytest.raises(RuntimeError, match=r"the upstream gradient differs between rows.*uniform=True"):
        torch.autograd.grad(value, x, weights(5))


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(pairs: str, engine: str, dtype: torch.dtype) -> None:
    x, keys, scale, bias = (leaf.detach() for leaf in leaves((63, 7), 10.0, -3.0))
    half, wide = (
        swept(pairs, "few", *(t.to(dtype).to(to) for t in (x, keys)), scale, bias, engine) for to in (dtype, torch.float32)
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, wide)


def visited(ids: Tensor) -> Tensor:
    """How often each pair of rows, of ids in order, is in a visited tile, either way round."""
    seen = torch.zeros(len(ids), len(ids), dtype=torch.int64)
    grid = Tiles(Sweep.of(torch.zeros(len(ids), 2), ids=ids, counts="equal"), torch.zeros(len(ids), 2))
    for i, j in grid:
        seen[i, j] += 1
        if grid.mirrored(i, j):
            seen[j, i] += 1
    return seen


@pytest.mark.parametrize("sizes", [[2] * 50, [100], [70, 1, 1, 30, 3, 3, 3, 3], [1] * 20, [3, 90, 2, 65]], ids=str)
def test_only_tiles_that_hold_pairs_are_visited(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair once; the work is that of the classes, and of blocks of a quarter of a tile for small ones."""
    monkeypatch.setattr(tiles, "TILE_CPU", 64)
    monkeypatch.setattr(tiles, "SINGLE_TILE_CPU", 0)
    ids = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    seen = visited(ids)
    assert int(seen.max()) == 1
    assert (seen[ids[:, None] == ids[None, :]] == 1).all()
    assert int(seen.sum()) <= sum(size**2 for size in sizes) + len(ids) * 16


def test_of_ids_on_an_accelerator_nothing_is_known() -> None:
    ids = torch.zeros(9, dtype=torch.int64, device="meta")
    grid = Tiles(Sweep.of(torch.zeros(9, 2), ids=ids, counts="equal"), torch.zeros(9, 2))
    assert grid._blocks == [(0, 9)]


def test_a_sweep_is_bounded_if_no_exponential_overflows() -> None:
    sweep = Sweep.of(rows(5, 3, dtype=torch.float32), norm_bound=1.0)
    for scale, bias, bounded in [
        (79.0, 0.0, True),
        (81.0, 0.0, False),
        (-81.0, 0.0, False),
        (10.0, 71.0, False),
        (200.0, -130.0, True),
    ]:
        term = Softplus(torch.tensor(scale), torch.full((5,), bias))
        assert on_tiles(term, Tiles(sweep, sweep.x)).bounded == bounded
