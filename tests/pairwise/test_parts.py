"""Sweeps in parts: together they are the whole, no pair is visited twice, and all parts are about the same work."""

import pytest
import torch
from cases import rows
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close

from contrastive_zoo import pairwise
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.tiled.tiles import Tiles

Part = tuple[int, int]


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
    with pytest.raises(ValueError, match="backend='dense' cannot do this: it computes whole sums, no parts of them"):
        pairwise.logsumexp(rows(4, 3), scale=1.0, backend="dense", part=(0, 2))
    with pytest.raises(ValueError, match="backend='dense' cannot do this: it computes whole sums, no parts of them"):
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
