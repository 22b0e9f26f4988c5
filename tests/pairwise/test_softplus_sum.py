"""What is special about sums of softplus: bounds, biases, the promise of a uniform gradient, and blocks of classes."""

import pytest
import torch
from cases import DTYPES, rows, weights
from tolerances import assert_close
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import Softplus
from contrastive_zoo.pairwise.tiled import tiles
from contrastive_zoo.pairwise.tiled.terms import on_tiles
from contrastive_zoo.pairwise.tiled.tiles import Tiles

PAIRS = ["self", "keys", "within"]
FEW = torch.arange(63) * 7 % 5 - 2
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


@dtypes
@every_kind
def test_a_known_bound_changes_nothing(pairs: str, dtype: torch.dtype) -> None:
    """Neither one that shows the sweep to be bounded, nor one that does not."""
    x, keys, scale, bias = (leaf.detach() for leaf in leaves((63, 7), 30.0, 1.0, dtype))
    found = []
    for norm_bound in (torch.inf, 1.01, 100.0):
        arguments = {"scale": scale, "bias": bias, "norm_bound": norm_bound}
        if pairs == "within":
            found.append(pairwise.softplus_sum_within(x, ids=FEW, **arguments))
        else:
            found.append(pairwise.softplus_sum(x, keys if pairs == "keys" else None, **arguments))
    for value in found[1:]:
        assert_close(value, found[0], "value", logit=30.0)


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
    x = rows(300, 3)
    value = pairwise.softplus_sum(x, scale=1.0, uniform=True)
    with pytest.raises(RuntimeError, match=r"the upstream gradient differs between rows.*uniform=True"):
        torch.autograd.grad(value, x, weights(300))


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


@pytest.mark.parametrize(("needed", "expected"), [((True, True), 3), ((True, False), 2), ((False, True), 2)], ids=str)
def test_with_a_promise_a_side_that_needs_no_gradient_costs_no_product(needed: tuple[bool, bool], expected: int) -> None:
    """One product for the sums, and one for each gradient."""
    x, keys = (torch.randn(64, 128, requires_grad=need) for need in needed)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        pairwise.softplus_sum(x, keys, scale=1.0, uniform=True).mean().backward()
    assert counter.get_total_flops() == expected * 2 * 64 * 64 * 128
    assert [tensor.grad is not None for tensor in (x, keys)] == list(needed)
