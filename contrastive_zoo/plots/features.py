"""Pictures of features: similarities, spectrum, class means, and an embedding in the plane."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from contrastive_zoo.checks import check_choice, check_classes, check_count
from contrastive_zoo.metrics.collapse import class_means
from contrastive_zoo.metrics.dimensionality import spectrum
from contrastive_zoo.metrics.hypersphere import cosine_density
from contrastive_zoo.metrics.inputs import check_features, check_labels, number_classes
from contrastive_zoo.metrics.tiles import inner_products, unit_rows
from contrastive_zoo.plots.figures import panels

MOST_COLOURS = 10


def plot_similarity(features: Mapping[str, Tensor], bins: int = 128) -> Any:
    """Density of the cosines of all pairs of rows, beside the law of uniform points on the sphere (dashed).

    Features that spread evenly follow the dashed curve; a peak at 1 is collapse, and a curve that is too wide uses few
    dimensions. See `zoo.metrics.cosine_density` and `zoo.metrics.wasserstein_uniformity`, the area between the distributions.

    Args:
        features: (N, D) features by the label of their curve, N >= 2; normalised inside.
        bins: As for `zoo.metrics.cosine_density`.

    Raises:
        ImportError: Matplotlib is not installed.
        TypeError: Features are not a floating-point tensor.
        ValueError: Features are not a finite matrix of at least two rows, or ``bins`` is out of range.

    Examples:
        >>> import torch, contrastive_zoo as zoo
        >>> figure = zoo.plots.plot_similarity({"random": torch.randn(200, 32)})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['random', 'uniform, D = 32']
    """
    figure, axes = panels(1, width=4.5)
    laws = {}
    for label, z in features.items():
        found = cosine_density(z, bins)
        axes.plot(found.cosine.tolist(), found.density.tolist(), label=label)
        laws[z.shape[1]] = found
    for width, found in laws.items():
        law = f"uniform, D = {width}"
        axes.plot(found.cosine.tolist(), found.uniform.tolist(), "--", color="#8a8a8a", label=law)
    axes.set(xlabel="cosine of two rows", ylabel="density", ylim=(0, None), xticks=[-1, -0.5, 0, 0.5, 1])
    axes.legend()
    return figure


def plot_spectrum(features: Mapping[str, Tensor]) -> Any:
    """Singular values of the covariance of the features, as a part of the largest, on a logarithmic scale.

    A sharp fall is dimensional collapse. See `zoo.metrics.spectrum`.

    Args:
        features: (N, D) features by the label of their curve, N >= 2; not normalised here.

    Raises:
        ImportError: Matplotlib is not installed.
        TypeError: Features are not a floating-point tensor.
        ValueError: Features are not a finite matrix of at least two rows.

    Examples:
        >>> import torch, contrastive_zoo as zoo
        >>> figure = zoo.plots.plot_spectrum({"random": torch.randn(200, 32)})
        >>> figure.axes[0].get_yscale()
        'log'
    """
    figure, axes = panels(1, width=4.5)
    for label, z in features.items():
        values = spectrum(z).cpu()
        # Values below this are rounding errors.
        shown = values[values > 1e-15 * values[0]] / values[0]
        axes.plot(range(1, len(shown) + 1), shown.tolist(), label=label)
    axes.set(xlabel="number of the singular value", ylabel="part of the largest", yscale="log")
    axes.legend()
    return figure


def plot_class_means(features: Tensor, labels: Tensor) -> Any:
    """Cosines of the means of all pairs of classes, as a matrix of colours.

    In neural collapse all entries off the diagonal are -1 / (C - 1), which the colour bar marks. See
    `zoo.metrics.neural_collapse`.

    Args:
        features: (N, D) features; not normalised here.
        labels: (N,) integer classes, at least two different ones.

    Raises:
        ImportError: Matplotlib is not installed.
        TypeError: ``features`` is not a floating-point or ``labels`` not an integer tensor.
        ValueError: Shapes do not agree, a feature is not finite, or there is only one class.

    Examples:
        >>> import torch, contrastive_zoo as zoo
        >>> figure = zoo.plots.plot_class_means(torch.randn(60, 8), torch.arange(60) % 3)
        >>> figure.axes[0].images[0].get_array().shape
        (3, 3)
    """
    rows = check_features(features, "features")
    values, classes = number_classes(check_labels(labels, rows, "labels"))
    check_classes("labels", len(values))
    means = unit_rows(class_means(rows, classes))
    figure, axes = panels(1, width=3.8, height=3.2)
    image = axes.imshow(inner_products(means, means).cpu().numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    bar = figure.colorbar(image, label="cosine of class means")
    bar.ax.axhline(-1 / (len(values) - 1), color="black", linewidth=2)
    axes.set(xlabel="class", ylabel="class")
    if len(values) <= 2 * MOST_COLOURS:
        names = [str(value) for value in values.tolist()]
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
    return figure


def plot_embedding(
    features: Mapping[str, Tensor], labels: Tensor | None = None, *, method: str = "pca", points: int = 1000, seed: int = 0
) -> Any:
    """Unit rows of features as points in the plane, coloured by class; a panel for each set of features.

    Args:
        features: (N, D) features by the title of their panel, N >= 2, of the same samples in the same order; normalised inside.
        labels: (N,) integer classes.
        method: "pca", the two directions of the largest variance, or "tsne", scikit-learn's t-SNE.
        points: Largest number of points, the first rows; t-SNE takes a minute for ten thousand.
        seed: Random seed of t-SNE.

    Raises:
        ImportError: Matplotlib, or for "tsne" scikit-learn, is not installed.
        TypeError: Features are not floating-point tensors or ``labels`` is not an integer tensor.
        ValueError: Shapes do not agree, a feature is not finite, or an argument is out of range.

    Examples:
        >>> import torch, contrastive_zoo as zoo
        >>> figure = zoo.plots.plot_embedding({"random": torch.randn(60, 8)}, torch.arange(60) % 3)
        >>> figure.axes[0].get_title()
        'random'
    """
    check_choice("method", method, ("pca", "tsne"))
    points, seed = check_count("points", points, low=2), check_count("seed", seed, low=0)
    placed = {}
    for title, z in features.items():
        rows = unit_rows(check_features(z, title))
        classes = None if labels is None else check_labels(labels, rows, "labels")[:points].cpu()
        placed[title] = _plane(rows[:points].cpu(), method, seed), classes
    figure, _ = panels(max(1, len(placed)))
    for panel, (title, (places, classes)) in zip(figure.axes, placed.items(), strict=False):
        colours: dict[str, Any] = {}
        if classes is not None:
            values, numbers = number_classes(classes)
            colours = {"c": numbers.tolist(), "cmap": "tab10" if len(values) <= MOST_COLOURS else "turbo"}
        panel.scatter(*places.T.tolist(), s=12, linewidths=0, alpha=0.75, **colours)
        panel.set(title=title, xticks=[], yticks=[])
    return figure


def _plane(rows: Tensor, method: str, seed: int) -> Tensor:
    """(N, 2) places of rows in the plane."""
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("method='tsne' needs scikit-learn: pip install scikit-learn.") from error
        tsne = TSNE(perplexity=min(30.0, len(rows) / 4), init="pca", random_state=seed)
        return torch.as_tensor(tsne.fit_transform(rows.numpy()))
    centred = rows.double() - rows.double().mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    # A direction and its opposite are equally good: the largest entry is positive, so that a picture can be drawn again.
    directions *= directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    places = centred @ directions.T
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
