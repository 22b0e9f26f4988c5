"""Sweeps in parts: together they are the whole, no pair is visited twice, and all parts are about the same work."""

from collections.abc import Callable

import pytest
import torch
from cases import rows, weights
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.tiled import loop, tiles
from contrastive_zoo.pairwise.tiled.tiles import Tiles

Part = tuple[int, int]
Summing = Callable[[Tensor, Tensor, Tensor, Part], Tensor]

LOGSUMEXPS: dict[str, Summing] = {
    "self": lambda x, keys, scale, part: pairwise.logsumexp(x, scale=scale, part=part),
    "self, views": lambda x, keys, scale, part: pairwise.logsumexp(x, scale=scale, ids=torch.arange(len(x)) // 2, part=part),
    "self, shuffled ids": lambda x, keys, scale, part: pairwise.logsumexp(
        x, scale=scale, ids=torch.arange(len(x)) * 7 % 11, part=part
    ),
    "keys": lambda x, keys, scale, part: pairwise.logsumexp(x, keys, scale=scale, part=part),
    "keys, ids": lambda x, keys, scale, part: pairwise.logsumexp(
        x, keys, scale=scale, ids=torch.arange(len(x)), key_ids=torch.arange(len(keys)), part=part
    ),
    "both": lambda x, keys, scale, part: torch.cat(pairwise.logsumexp_both(x, keys, scale=scale, part=part)),
    "small temperature": lambda x, keys, scale, part: pairwise.logsumexp(x, scale=100 * scale, part=part),
    "two scales": lambda x, keys, scale, part: pairwise.logsumexp(x, scale=(scale, 40 * scale), part=part),
    "with mean": lambda x, keys, scale, part: pairwise.logsumexp_with_mean(
        x, keys, scale=scale * torch.linspace(1, 2, len(x), dtype=x.dtype), part=part
    )[0],
    "scale per row": lambda x, keys, scale, part: pairwise.logsumexp(
        x, scale=scale * torch.linspace(1, 2, len(x), dtype=x.dtype), part=part
    ),
}
SUMS: dict[str, Summing] = {
    "softplus": lambda x, keys, scale, part: pairwise.softplus_sum(
        x, scale=scale, bias=torch.linspace(-1, 1, len(x), dtype=x.dtype), ids=torch.arange(len(x)) // 2, part=part
    ),
    "softplus, keys": lambda x, keys, scale, part: pairwise.softplus_sum(x, keys, scale=scale, bias=0.5, part=part),
    "softplus within": lambda x, keys, scale, part: pairwise.softplus_sum_within(
        x, ids=torch.arange(len(x)) * 7 % 5, scale=scale, bias=torch.linspace(-1, 1, len(x), dtype=x.dtype), part=part
    ),
    "kernel": lambda x, keys, scale, part: pairwise.kernel_sum(scale * x, kernel="imq", parameter=1.0, part=part),
    "kernel, ids": lambda x, keys, scale, part: pairwise.kernel_sum(
        x, kernel="log", parameter=2.0, ids=torch.arange(len(x)) // 3, unit_rows=True, part=part
    ),
}


def outcome(whole: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Value and gradients of 63 rows, 45 keys and the scale."""
    x, keys, scale = rows(63, 7), rows(45, 7, seed=1), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    value = whole(x, keys, scale)
    return value, *torch.autograd.grad(value, (x, keys, scale), weights(*value.shape), materialize_grads=True)


@pytest.fixture(params=[0, 2**24], ids=["recomputed tiles", "kept tiles"])
def _small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "GRAIN", 2)
    monkeypatch.setattr(loop, "KEEP_BYTES", request.param)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("parts", [2, 3, 5, 40])
@pytest.mark.parametrize("name", [*LOGSUMEXPS, *SUMS])
def test_parts_make_the_whole(name: str, parts: int) -> None:
    """Also if some of them are empty."""
    sweep = LOGSUMEXPS.get(name) or SUMS[name]
    numbers = [(number, parts) for number in range(parts)]

    def together(x: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
        sums = torch.stack([sweep(x, keys, scale, part) for part in numbers])
        # A finite stand-in for -inf, whose gradient autograd could not tell.
        return sums.clamp_min(-1e4).logsumexp(0) if name in LOGSUMEXPS else sums.sum(0)

    expected = outcome(lambda x, keys, scale: sweep(x, keys, scale, (0, 1)))
    for what, actual, wanted in zip(("sums", "rows", "keys", "scale"), outcome(together), expected, strict=True):
        assert_close(actual, wanted, what, logit=300.0, magnitude=1.0)


@given(st.integers(1, 3000), st.integers(1, 3000) | st.none(), st.integers(1, 9))
def test_each_pair_is_visited_once(size: int, keys: int | None, parts: int) -> None:
    """Counted by area: tiles above the diagonal stand for their transposes too."""
    x, others = torch.empty(size, 1), None if keys is None else torch.empty(keys, 1)
    seen: set[tuple[int, int]] = set()
    area = 0
    for number in range(parts):
        part = Tiles(Sweep.of(x, others, part=(number, parts)), x)
        for i, j in part:
            assert (i.start, j.start) not in seen
            seen.add((i.start, j.start))
            area += (i.stop - i.start) * (j.stop - j.start) * (2 if part.mirrored(i, j) else 1)
    assert area == size * (size if keys is None else keys)


@pytest.mark.parametrize("keys", [None, 4096])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_are_the_same_work(keys: int | None, parts: int) -> None:
    x, others = torch.empty(4096, 1), None if keys is None else torch.empty(keys, 1)
    work = []
    for number in range(parts):
        visited = Tiles(Sweep.of(x, others, part=(number, parts)), x)
        work.append(sum((i.stop - i.start) * (j.stop - j.start) for i, j in visited))
    assert max(work) <= 1.1 * sum(work) / parts


def test_the_dense_backend_has_no_parts() -> None:
    with pytest.raises(ValueError, match="backend='dense' cannot do this: it builds the whole matrix, and has no parts"):
        pairwise.logsumexp(rows(4, 3), scale=1.0, backend="dense", part=(0, 2))
    with pytest.raises(ValueError, match="backend='dense' cannot do this: it builds the whole matrix, and has no parts"):
        pairwise.kernel_sum(rows(4, 3), kernel="imq", parameter=1.0, backend="dense", part=(1, 2))


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_is_one_of_its_number(part: Part) -> None:
    with pytest.raises(ValueError, match=r"part must be \(number, parts\)"):
        pairwise.logsumexp_both(rows(4, 3), rows(4, 3), scale=1.0, part=part)


def test_parts_of_a_mean_weigh_their_sums() -> None:
    x, scale = rows(63, 7), torch.linspace(1, 30, 63, dtype=torch.float64)
    whole, mean = pairwise.logsumexp_with_mean(x, scale=scale)
    parts = [pairwise.logsumexp_with_mean(x, scale=scale, part=(number, 3)) for number in range(3)]
    weighted = sum((sums - whole).exp() * means for sums, means in parts)
    assert_close(weighted, mean, "mean", magnitude=1.0)


def test_a_uniform_promise_holds_for_parts() -> None:
    x, keys = rows(63, 7), rows(45, 7, seed=1)
    whole = torch.autograd.grad(pairwise.softplus_sum(x, keys, scale=3.0, uniform=True).mean(), (x, keys))
    parts = [pairwise.softplus_sum(x, keys, scale=3.0, uniform=True, part=(number, 3)).mean() for number in range(3)]
    for what, found, wanted in zip(("rows", "keys"), torch.autograd.grad(sum(parts), (x, keys)), whole, strict=True):
        assert_close(found, wanted, what, magnitude=1.0)
