import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive_zoo.metrics import retrieval_accuracy


def draw(rows, features, seed=0):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_top_k(queries, keys, k):
    """Mean over queries of the chance of a place among the first k, if ties are put in random order."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    total = 0.0
    for i, query in enumerate(queries.tolist()):
        similarities = [cosine(query, key) for key in keys.tolist()]
        ahead = sum(s > similarities[i] + 1e-12 for s in similarities)
        tied = sum(abs(s - similarities[i]) <= 1e-12 for s in similarities)
        total += sum(ahead + place < k for place in range(tied)) / tied
    return total / len(queries)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 25),
    features=st.integers(1, 5),
    noise=st.floats(0, 3),
    k=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    duplicates=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_equal_to_the_double_loop(rows, features, noise, k, duplicates, seed):
    z1 = draw(rows, features, seed)
    z2 = z1 + noise * draw(rows, features, seed + 1)
    z2[:duplicates] = z2[0].clone()
    result = retrieval_accuracy(z1, z2, k)
    for count in k:
        assert result.z1_to_z2[count] == pytest.approx(slow_top_k(z1, z2, count), abs=1e-6)
        assert result.z2_to_z1[count] == pytest.approx(slow_top_k(z2, z1, count), abs=1e-6)


def test_directions_differ():
    z1 = torch.eye(3)
    z2 = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.8, 0.0], [0.9, 0.0, 0.8]])
    result = retrieval_accuracy(z1, z2, k=(1,))
    assert result.z1_to_z2[1] == 1
    assert result.z2_to_z1[1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_known_configurations(dtype):
    eye = torch.eye(7, dtype=dtype)
    assert retrieval_accuracy(eye, eye) == ({1: 1.0, 5: 1.0}, {1: 1.0, 5: 1.0})
    shifted = retrieval_accuracy(eye, eye.roll(1, dims=0), k=(1, 7, 50))
    assert shifted.z1_to_z2 == pytest.approx({1: 0, 7: 1, 50: 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_features_are_at_chance(dtype, tile):
    row = draw(1, 333).to(dtype)
    result = retrieval_accuracy(row.repeat(50, 1), row.repeat(50, 1))
    assert result.z1_to_z2 == pytest.approx({1: 0.02, 5: 0.1})
    assert result.z2_to_z1 == pytest.approx({1: 0.02, 5: 0.1})


def test_k_must_be_positive_integers():
    for k, error in (((0,), ValueError), ((1, -2), ValueError), ((1.5,), TypeError)):
        with pytest.raises(error, match="each k must be"):
            retrieval_accuracy(torch.eye(3), torch.eye(3), k=k)
