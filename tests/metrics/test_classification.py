import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from contrastive_zoo import metrics
from contrastive_zoo.metrics import knn_accuracy, linear_probe, nearest_class_mean


def draw(rows, features, seed=0):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def slow_knn_accuracy(train, train_labels, test, test_labels, k, temperature):
    correct = 0
    for row, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        neighbours = [(cosine(row, other), y) for other, y in zip(train.tolist(), train_labels.tolist(), strict=True)]
        votes = {}
        for similarity, y in sorted(neighbours, reverse=True)[:k]:
            votes[y] = votes.get(y, 0) + math.exp(similarity / temperature)
        correct += max(votes, key=votes.get) == label
    return correct / len(test)


def slow_nearest_class_mean(train, train_labels, test, test_labels):
    means = {}
    for y in set(train_labels.tolist()):
        rows = [row for row, other in zip(train.tolist(), train_labels.tolist(), strict=True) if other == y]
        means[y] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    nearest = [min(means, key=lambda y, row=row: math.dist(row, means[y])) for row in test.tolist()]
    return sum(a == b for a, b in zip(nearest, test_labels.tolist(), strict=True)) / len(test)


@st.composite
def splits(draw_from):
    """Noisy clusters, labelled from -2 to 3, so that answers are neither all right nor all wrong, in at least two
    dimensions, since cosines in one are all tied."""
    rows, queries, features = (draw_from(st.integers(low, high)) for low, high in ((1, 25), (1, 10), (2, 5)))
    seed = draw_from(st.integers(0, 999))
    y = torch.randint(-2, 4, (rows + queries,), generator=torch.Generator().manual_seed(seed))
    z = draw(rows + queries, features, seed) + draw(6, features, seed + 1)[y + 2]
    return z[:rows], y[:rows], z[rows:], y[rows:]


@settings(deadline=None, max_examples=60)
@given(split=splits(), k=st.integers(1, 25), temperature=st.sampled_from([0.01, 0.07, 1.0]))
def test_knn_accuracy_equals_the_double_loop(split, k, temperature):
    k = min(k, len(split[0]))
    assert knn_accuracy(*split, k=k, temperature=temperature) == slow_knn_accuracy(*split, k, temperature)


@settings(deadline=None, max_examples=40)
@given(split=splits())
def test_nearest_class_mean_equals_the_double_loop(split):
    assert nearest_class_mean(*split) == slow_nearest_class_mean(*split)


def test_knn_weights_by_similarity():
    angles = torch.tensor([0.1, 0.3, 0.3])
    train, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([1, 2, 2])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_accuracy(train, labels, query, torch.tensor([1]), k=3, temperature=0.01) == 1
    assert knn_accuracy(train, labels, query, torch.tensor([2]), k=3, temperature=1.0) == 1
    assert knn_accuracy(train, labels, query, torch.tensor([1]), k=1, temperature=1.0) == 1


def test_knn_survives_a_tiny_temperature_and_any_scale():
    train, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_accuracy(1e18 * train, labels, 1e-18 * train, labels, k=3, temperature=1e-4) == 1


def test_nearest_class_mean_is_euclidean():
    train, labels = torch.tensor([[1.0, 0.0], [10.0, 0.0]]), torch.tensor([0, 1])
    assert nearest_class_mean(train, labels, torch.tensor([[2.0, 0.0], [7.0, 0.0]]), labels) == 1


@pytest.mark.parametrize("metric", [knn_accuracy, nearest_class_mean, linear_probe])
def test_class_without_training_rows_is_never_right(metric):
    train, labels = draw(30, 4), torch.arange(30) % 3
    assert metric(train, labels, train, labels + 100) == 0


@pytest.mark.parametrize("metric", [knn_accuracy, nearest_class_mean, linear_probe])
def test_separated_clusters_are_read_without_error(metric):
    centres, labels = 10 * torch.eye(4), torch.arange(100) % 4
    z = centres[labels] + draw(100, 4).float()
    assert metric(z[:60], labels[:60], z[60:], labels[60:]) == 1


def test_linear_probe_is_logistic_regression_on_standardised_features():
    labels = torch.arange(200) % 5
    z = draw(200, 3) + draw(5, 3, seed=1)[labels]
    mean, deviation = z[:120].mean(0), z[:120].std(0, correction=0)
    scaled = ((z - mean) / deviation).numpy()
    reference = LogisticRegression(C=0.1, max_iter=1000).fit(scaled[:120], labels[:120].numpy())
    expected = reference.score(scaled[120:], labels[120:].numpy())
    assert 0.3 < expected < 0.9
    split = (z[:120], labels[:120], z[120:], labels[120:])
    assert linear_probe(*split, C=0.1) == expected
    stretched = z * torch.tensor([1e4, 1.0, 1e-4]) + torch.tensor([0.0, 5.0, -3.0])
    assert linear_probe(stretched[:120], labels[:120], stretched[120:], labels[120:], C=0.1) == expected


def test_linear_probe_names_the_extra_that_it_needs(monkeypatch):
    for name in ("sklearn", "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install contrastive-zoo\[examples\]"):
        linear_probe(torch.eye(2), torch.arange(2), torch.eye(2), torch.arange(2))


def test_out_of_range_parameters():
    split = (torch.eye(4), torch.arange(4), torch.eye(4), torch.arange(4))
    with pytest.raises(ValueError, match="k must be at most the number of rows of train = 4, got 5"):
        knn_accuracy(*split, k=5)
    for k in (0, -1):
        with pytest.raises(ValueError, match="k must be at least 1"):
            knn_accuracy(*split, k=k)
    for k in (1.0, True):
        with pytest.raises(TypeError, match="k must be a whole number"):
            knn_accuracy(*split, k=k)
    with pytest.raises(ValueError, match=r"temperature must be a finite number in \(0, inf\), got 0"):
        knn_accuracy(*split, k=1, temperature=0)
    with pytest.raises(ValueError, match=r"C must be a finite number in \(0, inf\), got -1"):
        linear_probe(*split, C=-1)
    with pytest.raises(ValueError, match="max_iter must be at least 1, got 0"):
        linear_probe(*split, max_iter=0)
    with pytest.raises(ValueError, match="one class only"):
        linear_probe(torch.eye(4), torch.zeros(4, dtype=torch.int64), torch.eye(4), torch.arange(4))


@pytest.mark.parametrize("metric", [knn_accuracy, nearest_class_mean, linear_probe])
def test_training_and_test_features_must_fit(metric):
    with pytest.raises(ValueError, match=r"same width, got shapes \(4, 4\) and \(3, 3\)"):
        metric(torch.eye(4), torch.arange(4), torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"train.* must have shape \(4,\), one entry per sample, got \(3,\)"):
        metric(torch.eye(4), torch.arange(3), torch.eye(4), torch.arange(4))


def test_few_labels_are_drawn_from_every_class() -> None:
    """One row of each class separates classes of equal rows; with all rows the probe is the linear probe."""
    labels = torch.arange(200) % 4
    corners = torch.eye(4)[labels] * 5
    assert metrics.few_label_probe(corners, labels, corners, labels, fraction=0.001) == (1.0, 0.0)
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    train, test = noise[:100] + corners[:100] / 4, noise[100:] + corners[100:] / 4
    split = train, labels[:100], test, labels[100:]
    whole, few = metrics.few_label_probe(*split, fraction=1.0, draws=2), metrics.few_label_probe(*split, fraction=0.04)
    assert whole == (metrics.linear_probe(*split), 0.0)
    assert 0.25 < few.mean < whole.mean
    assert few.std > 0
    assert metrics.few_label_probe(*split, fraction=0.04) == few
    assert metrics.few_label_probe(*split, fraction=0.04, seed=1) != few
