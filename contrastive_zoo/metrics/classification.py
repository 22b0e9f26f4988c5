"""Accuracy of simple classifiers on frozen features."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from contrastive_zoo.checks import check_at_most, check_classes, check_count, check_number
from contrastive_zoo.metrics.collapse import class_means
from contrastive_zoo.metrics.inputs import check_split, number_classes
from contrastive_zoo.metrics.tiles import blocks, inner_products, squared_distances, unit_rows


def nearest_class_mean(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> float:
    """Fraction of test rows whose nearest class mean (Euclidean, over training rows) belongs to their own class.

        prediction(z) = argmin_c |z - m_c|

    Mensink et al., "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost", TPAMI 2013.

    Args:
        train_z: (N, D) features, not normalised.
        train_y: (N,) integer classes.
        test_z: (M, D) features.
        test_y: (M,) integer classes; a class that is not in `train_y` is never predicted.

    Raises:
        TypeError: features are not floating-point or labels not integer tensors.
        ValueError: shapes or devices do not agree, or a feature is not finite.

    Examples:
        >>> train, labels = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([3, 3, 7])
        >>> nearest_class_mean(train, labels, torch.tensor([[2.0], [8.0]]), torch.tensor([3, 7]))
        1.0
    """
    names = ("train_z", "train_y", "test_z", "test_y")
    train, train_labels, test, test_labels = check_split(train_z, train_y, test_z, test_y, names)
    values, classes = number_classes(train_labels)
    means = class_means(train, classes)
    return _accuracy(test, test_labels, lambda rows: values[squared_distances(rows.double(), means).argmin(dim=1)])


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of a vote of the `k` training rows with the largest cosine, each with weight exp(cosine / temperature).

        prediction(z) = argmax_c sum_{i among the k nearest, y_i = c} exp(cos(z, z_i) / temperature)

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4, with
    k = 200 there. arXiv:1805.01978. Ties between training rows with equal cosines are broken arbitrarily.

    Args:
        train: (N, D) features; normalised inside.
        train_labels: (N,) integer classes.
        test: (M, D) features; normalised inside.
        test_labels: (M,) integer classes; a class that is not in `train_labels` is never predicted.
        k: Number of neighbours, at most N.
        temperature: Positive; smaller values give the nearest neighbour more weight.

    Raises:
        TypeError: features are not floating-point or labels not integer tensors.
        ValueError: shapes or devices do not agree, a feature is not finite, or `k` or `temperature` is out of range.

    Examples:
        >>> train, labels = torch.eye(2), torch.tensor([5, 8])
        >>> knn_accuracy(train, labels, torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([5, 8]), k=1)
        1.0
    """
    names = ("train", "train_labels", "test", "test_labels")
    train, train_labels, test, test_labels = check_split(train, train_labels, test, test_labels, names)
    k = check_count("k", k)
    temperature = check_number("temperature", temperature, low=0, open_low=True)
    check_at_most("k", k, "the number of rows of train", len(train))
    values, classes = number_classes(train_labels)
    keys = unit_rows(train)

    def predict(rows: Tensor) -> Tensor:
        cosines, neighbours = _nearest_rows(rows, keys, k)
        votes = cosines.new_zeros(len(rows), len(values))
        votes.scatter_add_(1, classes[neighbours], torch.softmax(cosines / temperature, dim=1))
        return values[votes.argmax(dim=1)]

    return _accuracy(unit_rows(test), test_labels, predict)


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    C: float = 1.0,
    max_iter: int = 1000,
) -> float:
    """Test accuracy of logistic regression trained on the frozen features, each scaled to mean 0 and variance 1.

    Uses `StandardScaler` and `LogisticRegression` (L-BFGS, L2 penalty) of scikit-learn, on the CPU.

    Args:
        train: (N, D) features.
        train_labels: (N,) integer classes, at least two different ones.
        test: (M, D) features, scaled by the mean and variance of `train`.
        test_labels: (M,) integer classes.
        C: Inverse strength of the L2 penalty, positive.
        max_iter: Maximum number of iterations; scikit-learn warns if it does not suffice.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: features are not floating-point or labels not integer tensors.
        ValueError: shapes or devices do not agree, a feature is not finite, there is one class only, or `C` or
            `max_iter` is out of range.

    Examples:
        >>> train, labels = torch.tensor([[0.0], [1.0], [8.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe(train, labels, torch.tensor([[2.0], [7.0]]), torch.tensor([0, 1]))
        1.0
    """
    names = ("train", "train_labels", "test", "test_labels")
    train, train_labels, test, test_labels = check_split(train, train_labels, test, test_labels, names)
    C = check_number("C", C, low=0, open_low=True)
    max_iter = check_count("max_iter", max_iter)
    check_classes("train_labels", len(number_classes(train_labels)[0]))
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
        from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "linear_probe needs scikit-learn, which cannot be imported: pip install contrastive-zoo[examples]"
        ) from error
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
    probe.fit(train.cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test.cpu().numpy(), test_labels.cpu().numpy()))


class FewLabelAccuracy(NamedTuple):
    """Test accuracy of linear probes on few labels: mean over the draws of the labelled rows, and standard deviation."""

    mean: float
    std: float


def few_label_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    fraction: float = 0.01,
    draws: int = 5,
    seed: int = 0,
) -> FewLabelAccuracy:
    """Accuracy of `linear_probe` where only a random part of the training rows of each class has labels.

    Each draw takes ``ceil(fraction * n)`` of the n rows of a class, so at least one.

    Args:
        train: (N, D) features.
        train_labels: (N,) integer classes, at least two different ones.
        test: (M, D) features.
        test_labels: (M,) integer classes.
        fraction: Part of the training rows with labels, above 0 and at most 1; 0.01 and 0.1 are usual.
        draws: Number of random draws.
        seed: Random seed of the draws.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: features are not floating-point or labels not integer tensors.
        ValueError: shapes or devices do not agree, a feature is not finite, there is one class only, or a number is out of
            range.

    Examples:
        >>> train, labels = torch.tensor([[0.0], [1.0], [8.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> few_label_probe(train, labels, torch.tensor([[2.0], [7.0]]), torch.tensor([0, 1]), fraction=0.5)
        FewLabelAccuracy(mean=1.0, std=0.0)
    """
    names = ("train", "train_labels", "test", "test_labels")
    train, train_labels, test, test_labels = check_split(train, train_labels, test, test_labels, names)
    fraction = check_number("fraction", fraction, low=0, high=1, open_low=True)
    draws, seed = check_count("draws", draws), check_count("seed", seed, low=0)
    values, classes = number_classes(train_labels.cpu())
    check_classes("train_labels", len(values))
    generator, accuracies = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        order = torch.randperm(len(classes), generator=generator)
        members = [order[classes[order] == number] for number in range(len(values))]
        chosen = torch.cat([rows[: math.ceil(fraction * len(rows))] for rows in members]).to(train.device)
        accuracies.append(linear_probe(train[chosen], train_labels[chosen], test, test_labels))
    return FewLabelAccuracy(statistics.mean(accuracies), statistics.pstdev(accuracies))


def _accuracy(rows: Tensor, labels: Tensor, predict: Callable[[Tensor], Tensor]) -> float:
    """Fraction of rows whose predicted label is their own, one block of rows at a time; read once, at the end."""
    correct = labels.new_zeros(())
    for piece, wanted in zip(blocks(rows), blocks(labels), strict=True):
        correct += (predict(piece) == wanted).sum()
    return int(correct) / len(rows)


def _nearest_rows(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest inner products of each query (Q, k) and the rows of `keys` they belong to, one tile at a time."""
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for piece, numbers in zip(blocks(keys), blocks(torch.arange(len(keys), device=keys.device)), strict=True):
        candidates = torch.cat([best, inner_products(queries, piece)], dim=1)
        numbered = torch.cat([index, repeat(numbers, "key -> query key", query=len(queries))], dim=1)
        best, chosen = candidates.topk(min(k, candidates.shape[1]), dim=1)
        index = numbered.gather(1, chosen)
    return best, index
