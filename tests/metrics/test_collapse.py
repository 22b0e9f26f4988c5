import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from contrastive_zoo.metrics import neural_collapse, within_class_distance


def draw(rows, features, seed=0):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_class_means(z, labels):
    groups = {}
    for row, label in zip(z.tolist(), labels.tolist(), strict=True):
        groups.setdefault(label, []).append(row)
    return {label: [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)] for label, rows in groups.items()}


def slow_neural_collapse(z, labels):
    means = list(slow_class_means(z, labels).values())
    classes = len(means)
    gaps = []
    for a, b in itertools.permutations(means, 2):
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
        gaps.append(abs(cosine + 1 / (classes - 1)))
    centre = [math.fsum(column) / classes for column in zip(*means, strict=True)]
    unit_norm = sum(abs(math.hypot(*m) - 1) for m in means) / classes
    return unit_norm, math.hypot(*centre), sum(gaps) / len(gaps), max(gaps)


def slow_within_class_distance(z, labels):
    means = slow_class_means(z, labels)
    averages = []
    for label, mean in means.items():
        distances = [math.dist(row, mean) for row, y in zip(z.tolist(), labels.tolist(), strict=True) if y == label]
        averages.append(sum(distances) / len(distances))
    return sum(averages) / len(averages)


@pytest.mark.parametrize("case", ["nc_metrics", "nc_metrics_scl_nb"])
def test_authors_neural_collapse(golden, case):
    data = golden(f"hscl/{case}")
    for epoch, means in enumerate(data["class_means"]):
        result = neural_collapse(means, torch.arange(len(means)))
        assert result.unit_norm == pytest.approx(float(data["unit_norm"][epoch]), abs=1e-14)
        assert result.zero_sum == pytest.approx(float(data["zero_sum"][epoch]), abs=1e-14)
        assert result.equal_inner_product == pytest.approx(float(data["equal_inner_mean"][epoch]), abs=1e-14)
        assert result.equal_inner_product_max == pytest.approx(float(data["equal_inner_max"][epoch]), abs=1e-14)


def test_authors_within_class_distance(golden):
    data = golden("hscl/within_class_distance")
    value = within_class_distance(data["features"], data["labels"])
    assert value == pytest.approx(float(data["within_class_distance"]), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(-3, 4), min_size=2, max_size=25).filter(lambda y: len(set(y)) > 1),
    features=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_equal_to_the_double_loops(labels, features, seed):
    z, y = draw(len(labels), features, seed), torch.tensor(labels)
    assert neural_collapse(z, y) == pytest.approx(slow_neural_collapse(z, y), rel=1e-9, abs=1e-12)
    assert within_class_distance(z, y) == pytest.approx(slow_within_class_distance(z, y), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_simplex_is_full_collapse(classes):
    simplex = normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes, dim=1)
    features, labels = simplex.repeat(4, 1), torch.arange(classes).repeat(4)
    assert neural_collapse(features, labels) == pytest.approx((0, 0, 0, 0), abs=1e-14)
    assert within_class_distance(features, labels) == pytest.approx(0, abs=1e-14)


def test_orthonormal_classes_and_length():
    result = neural_collapse(3 * torch.eye(4), torch.arange(4))
    assert result == pytest.approx((2, 1.5, 1 / 3, 1 / 3))


def test_distance_is_averaged_by_class_and_not_by_sample():
    z = torch.tensor([[-1.0], [1.0], [10.0], [20.0], [10.0], [20.0]])
    assert within_class_distance(z, torch.tensor([4, 4, -1, -1, -1, -1])) == pytest.approx(3)


def test_class_mean_of_zero_has_cosine_zero():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert neural_collapse(z, torch.tensor([0, 0, 1])).equal_inner_product == pytest.approx(1)


def test_one_class_has_no_angles():
    with pytest.raises(ValueError, match="one class only"):
        neural_collapse(torch.eye(3), torch.zeros(3, dtype=torch.int64))
    assert within_class_distance(torch.tensor([[0.0], [2.0]]), torch.zeros(2, dtype=torch.int64)) == 1
