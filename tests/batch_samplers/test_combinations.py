"""All N-choose-B batches: unranking, the pseudo-random permutation, and what an epoch makes of them."""

import math
from itertools import chain, combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import contrastive_zoo as zoo
from contrastive_zoo.batch_samplers.combinations import permuted, unrank_combination


@pytest.mark.parametrize(("num_samples", "size"), [(6, 3), (10, 4), (7, 1), (5, 5), (40, 2)])
def test_every_rank_is_another_combination_in_colexicographic_order(num_samples: int, size: int) -> None:
    found = [tuple(unrank_combination(rank, num_samples, size)) for rank in range(math.comb(num_samples, size))]
    assert found == sorted(tuple(reversed(c)) for c in combinations(range(num_samples), size))


@given(st.data())
def test_rank_comes_back_from_a_combination_of_any_size(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 10**6))
    size = data.draw(st.integers(1, min(num_samples, 300)))
    rank = data.draw(st.integers(0, math.comb(num_samples, size) - 1))
    positions = unrank_combination(rank, num_samples, size)
    assert all(a > b for a, b in pairwise([num_samples, *positions, -1]))
    assert sum(math.comb(c, k) for c, k in zip(positions, range(size, 0, -1), strict=True)) == rank


@given(st.integers(1, 300), st.text(max_size=5))
def test_permutation_reaches_every_number_once(size: int, key: str) -> None:
    assert sorted(permuted(number, size, key) for number in range(size)) == list(range(size))


def test_permutation_of_more_numbers_than_anybody_can_list() -> None:
    size = math.comb(10**6, 256)
    images = [permuted(number, size, "key") for number in range(200)]
    assert len(set(images)) == 200
    assert 0.4 < np.mean([image / size for image in images]) < 0.6


def test_all_batches_come_once_before_one_comes_again() -> None:
    sampler = zoo.get_batch_sampler("combinations", num_samples=6, batch_size=3, seed=4)
    assert len(sampler) == 2
    epochs = [frozenset(batch) for batch in chain.from_iterable(list(sampler) for _ in range(20))]
    everything = {frozenset(batch) for batch in combinations(range(6), 3)}
    assert set(epochs[:20]) == set(epochs[20:]) == everything
    assert epochs[:20] != epochs[20:]


def test_samples_and_pairs_are_met_equally_often() -> None:
    sampler = zoo.get_batch_sampler("combinations", num_samples=100, batch_size=10, batches_per_epoch=4000)
    together = np.zeros((100, 100))
    for batch in sampler:
        together[np.ix_(batch, batch)] += 1
    # A sample is in a batch with probability 0.1, a pair with 1/110: four standard deviations.
    assert np.abs(np.diag(together) - 400).max() < 4 * math.sqrt(4000 * 0.09)
    pairs = together[np.triu_indices(100, 1)]
    assert abs(pairs.var() / pairs.mean() - 1) < 0.1


def test_positions_within_a_batch_are_in_random_order() -> None:
    """Or else the process that gets the first slice would always get the same end of the dataset."""
    sampler = zoo.get_batch_sampler("combinations", num_samples=1000, batch_size=2, batches_per_epoch=400)
    assert 150 < sum(first < second for first, second in sampler) < 250


def test_a_million_samples() -> None:
    sampler = zoo.get_batch_sampler("combinations", num_samples=10**6, batch_size=256)
    assert len(sampler) == 3906
    batch = next(iter(sampler))
    assert len(set(batch)) == 256
    assert 400_000 < np.mean(batch) < 600_000


@pytest.mark.parametrize("batches", [0, -1])
def test_mistakes(batches: int) -> None:
    with pytest.raises(ValueError, match="batches_per_epoch must be at least 1"):
        zoo.get_batch_sampler("combinations", num_samples=4, batch_size=2, batches_per_epoch=batches)
    with pytest.raises(TypeError, match="has no parameter 'drop_last'"):
        zoo.get_batch_sampler("combinations", num_samples=4, batch_size=2, drop_last=False)
