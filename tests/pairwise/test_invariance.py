"""What the sums must not depend on: tiles, kept tiles, order of keys, threads, autocast; and that dense and tiled agree."""

from collections.abc import Callable

import pytest
import torch
from cases import rows, weights
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.tiled import loop, tiles

SWEEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "self": lambda x, keys: pairwise.logsumexp(x, scale=10.0),
    "self, views": lambda x, keys: pairwise.logsumexp(x, scale=10.0, ids=torch.arange(len(x)) // 2),
    "keys": lambda x, keys: pairwise.logsumexp(x, keys, scale=10.0),
    "keys, views": lambda x, keys: pairwise.logsumexp(
        x, keys, scale=10.0, ids=torch.arange(len(x)) // 2, key_ids=torch.arange(len(keys)) // 2
    ),
    "tiny temperature": lambda x, keys: pairwise.logsumexp(x, scale=200.0),
    "two scales": lambda x, keys: pairwise.logsumexp(x, scale=(10.0, 200.0)).sum(0),
    "scale per row": lambda x, keys: pairwise.logsumexp(x, scale=torch.linspace(1, 100, len(x))),
    "both": lambda x, keys: torch.cat(pairwise.logsumexp_both(x, keys, scale=10.0)),
    "mean": lambda x, keys: torch.cat(pairwise.logsumexp_with_mean(x, scale=torch.linspace(1, 100, len(x)))),
    "mean of keys": lambda x, keys: torch.cat(pairwise.logsumexp_with_mean(x, keys, scale=torch.linspace(1, 100, len(x)))),
    "squares": lambda x, keys: pairwise.square_sum(x[:45], keys, ids=torch.arange(45) // 2),
    "kernel": lambda x, keys: pairwise.kernel_sum(x, kernel="imq", parameter=1.0),
    "softplus": lambda x, keys: pairwise.softplus_sum(x, keys, scale=10.0, bias=-3.0),
    "softplus, self": lambda x, keys: pairwise.softplus_sum(x, scale=100.0, bias=torch.linspace(-3, 3, len(x)).to(x)),
    "softplus within": lambda x, keys: pairwise.softplus_sum_within(
        x, ids=torch.arange(len(x)) % 4, scale=-1.0, bias=torch.linspace(-3, 3, len(x)).to(x)
    ),
}
every_sweep = pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)


def outcome(sweep: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of 63 rows and 45 keys."""
    x, keys = rows(63, 7), rows(45, 7, seed=1)
    value = sweep(x, keys)
    return value, *torch.autograd.grad(value, (x, keys), weights(*value.shape), materialize_grads=True)


def assert_same(first: tuple[Tensor, ...], second: tuple[Tensor, ...], logit: float = 200.0) -> None:
    for name, a, b in zip(("value", "gradient of rows", "gradient of keys"), first, second, strict=True):
        assert_close(a, b, name, logit=logit)


@every_sweep
@pytest.mark.parametrize("budget", [0, 2**24])
def test_size_of_tiles_does_not_matter(
    sweep: Callable[[Tensor, Tensor], Tensor], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(sweep)
    monkeypatch.setattr(loop, "KEEP_BYTES", budget)
    for size in (2, 6, 14, 32, 62, 64, 126):
        monkeypatch.setattr(tiles, "TILE_CPU", size)
        monkeypatch.setattr(tiles, "SINGLE_TILE_CPU", 0)
        assert_same(outcome(sweep), expected)


@every_sweep
def test_number_of_threads_does_not_matter(sweep: Callable[[Tensor, Tensor], Tensor]) -> None:
    threads, outcomes = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            outcomes.append(outcome(sweep))
    finally:
        torch.set_num_threads(threads)
    assert_same(*outcomes)


@every_sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_nothing(sweep: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    outcomes = []
    for enabled in (False, True):
        x, keys = rows(63, 7, dtype=dtype), rows(45, 7, seed=1, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = sweep(x, keys)
            found = torch.autograd.grad(value.sum(), (x, keys), materialize_grads=True)
        outcomes.append((value, *found))
    assert all(torch.equal(off, on) and off.dtype == on.dtype for off, on in zip(*outcomes, strict=True))


@every_sweep
def test_a_backward_pass_can_be_repeated(sweep: Callable[[Tensor, Tensor], Tensor]) -> None:
    """It uses up nothing of what the forward pass kept."""
    x, keys = rows(63, 7), rows(45, 7, seed=1)
    value = sweep(x, keys)
    first, second = (
        torch.autograd.grad(value, (x, keys), weights(*value.shape), retain_graph=True, materialize_grads=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_sweep
def test_rows_may_be_strided(sweep: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, keys = rows(63, 7), rows(45, 7, seed=1)
    strided = [torch.stack([t, -t], 2)[:, :, 0] for t in (x, keys)]
    assert not any(t.is_contiguous() for t in strided)
    value = sweep(*strided)
    found = torch.autograd.grad(value, (x, keys), weights(*value.shape), materialize_grads=True)
    assert_same((value, *found), outcome(sweep))


@every_sweep
def test_upstream_gradients_may_be_expanded(sweep: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, keys = rows(63, 7), rows(45, 7, seed=1)
    value = sweep(x, keys)
    of_sum = torch.autograd.grad(value.sum(), (x, keys), retain_graph=True, materialize_grads=True)
    of_ones = torch.autograd.grad(value, (x, keys), torch.ones_like(value), materialize_grads=True)
    assert_same((value, *of_sum), (value, *of_ones))


def test_order_of_keys_does_not_matter(engine: str) -> None:
    x, keys, order = rows(63, 7), rows(45, 7, seed=1), torch.randperm(45)
    ids, key_ids = torch.arange(63) // 2, torch.arange(45) // 2
    value = pairwise.logsumexp(x, keys, scale=10.0, ids=ids, key_ids=key_ids, backend=engine)
    mixed = pairwise.logsumexp(x, keys[order], scale=10.0, ids=ids, key_ids=key_ids[order], backend=engine)
    assert_same(
        (mixed, *torch.autograd.grad(mixed, (x, keys), weights(63))),
        (value, *torch.autograd.grad(value, (x, keys), weights(63))),
    )


def test_order_of_rows_does_not_matter(engine: str) -> None:
    x, order = rows(63, 7), torch.randperm(63)
    ids = torch.arange(63) // 2
    for sweep in (
        lambda x, ids: pairwise.logsumexp(x, scale=10.0, ids=ids, backend=engine),
        lambda x, ids: pairwise.kernel_sum(x, kernel="riesz", parameter=1.0, ids=ids, backend=engine),
        lambda x, ids: pairwise.softplus_sum(x, scale=10.0, bias=-3.0, ids=ids, backend=engine),
        lambda x, ids: pairwise.softplus_sum_within(x, scale=-1.0, bias=0.5, ids=ids % 4, backend=engine),
    ):
        value, mixed = sweep(x, ids), sweep(x[order], ids[order])
        assert_close(mixed, value[order], "value")
        upstream = weights(63)
        (gradient,), (other) = torch.autograd.grad(value, x, upstream), torch.autograd.grad(mixed, x, upstream[order])
        assert_close(other[0], gradient, "gradient of rows")


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, object]:
    n, m = draw(st.integers(1, 40)), draw(st.none() | st.integers(1, 40))
    how_many_ids = draw(st.integers(1, 45))
    seed = draw(st.integers(0, 2**16))
    x = rows(n, draw(st.integers(1, 6)), seed=seed)
    pick = torch.Generator().manual_seed(seed)
    arguments: dict[str, object] = {"x": x, "ids": torch.randint(0, how_many_ids, (n,), generator=pick)}
    if draw(st.booleans()):
        arguments["ids"] = arguments["ids"].sort().values
    if m is not None:
        arguments["keys"] = rows(m, x.shape[1], seed=seed + 1)
        arguments["key_ids"] = torch.randint(-1, how_many_ids, (m,), generator=pick)
    scale = draw(st.sampled_from([0.1, 1.0, 20.0, 300.0]))
    shape = draw(st.sampled_from([(), (n,)]))
    arguments["scale"] = torch.full(shape, scale, dtype=torch.float64).requires_grad_()
    if draw(st.booleans()) and shape == ():
        arguments["scale"] = (arguments["scale"], torch.tensor(3.0, dtype=torch.float64, requires_grad=True))
    return arguments


@given(arguments=sweeps(), size=st.sampled_from([2, 6, 16, 40]), budget=st.sampled_from([0, 2**24]))
def test_tiled_equals_dense(arguments: dict[str, object], size: int, budget: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_CPU", size)
        patch.setattr(tiles, "SINGLE_TILE_CPU", 0)
        patch.setattr(loop, "KEEP_BYTES", budget)
        outcomes = []
        for backend in ("tiled", "dense"):
            value = pairwise.logsumexp(**arguments, backend=backend)
            scale = arguments["scale"]
            inputs = [arguments["x"], *(scale if isinstance(scale, tuple) else [scale])]
            inputs += [arguments["keys"]] if "keys" in arguments else []
            found = torch.autograd.grad(value, inputs, weights(*value.shape), materialize_grads=True)
            outcomes.append((value, *found))
    for number, (tiled, dense) in enumerate(zip(*outcomes, strict=True)):
        assert_close(tiled, dense, "value" if number == 0 else f"gradient {number}", logit=300.0, magnitude=30.0)
