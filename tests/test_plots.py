"""Gradient weights against closed forms, and their pictures."""

import sys

import pytest
import torch
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.plots import gradient_weights, plot_gradient_weights


def softmax(similarity: Tensor, temperature: float, positive: float | None = None) -> Tensor:
    """Softmax over two rows for each similarity, and over the positive."""
    logits = torch.cat(
        [similarity, similarity] if positive is None else [similarity, similarity, similarity.new_tensor([positive])]
    )
    return (logits / temperature).softmax(0)[: len(similarity)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dcl(temperature: float) -> None:
    """Two rows of a negative, softmax / tau each, in the half of the loss that is the anchor's; the positive weighs 1 / tau."""
    weights = gradient_weights(zoo.get_loss("dcl", temperature=temperature))
    torch.testing.assert_close(weights.negative, softmax(weights.similarity, temperature) / temperature)
    # The anchor is also the positive of its positive.
    assert weights.positive == pytest.approx(1 / temperature)


def test_ntxent_has_the_positive_in_its_denominator() -> None:
    similar = gradient_weights(zoo.get_loss("ntxent", temperature=0.5), positive_similarity=0.9)
    torch.testing.assert_close(similar.negative, softmax(similar.similarity, 0.5, 0.9) / 0.5)
    distant = gradient_weights(zoo.get_loss("ntxent", temperature=0.5), positive_similarity=-0.9)
    assert similar.positive < distant.positive < 2


def test_spectral_contrastive_is_linear() -> None:
    """r^2 B / P times 2 s for the row of view 2, and 2 for the positive; P is B (B - 1)."""
    weights = gradient_weights(zoo.get_loss("spectral_contrastive", radius=2.0))
    count = len(weights.similarity)
    torch.testing.assert_close(weights.negative, 4 * 2 * weights.similarity / count)
    assert weights.positive == pytest.approx(2)


def test_kcl_is_the_slope_of_its_kernel() -> None:
    """Gaussian kernel e^(-t (2 - 2s)), whose slope in s is 2t times itself."""
    weights = gradient_weights(zoo.get_loss("kcl", t=1.5, gamma=3.0))
    size = len(weights.similarity) + 1
    slope = 3 * (-3 * (1 - weights.similarity)).exp() * 3 / (size * (size - 1) / 2)
    torch.testing.assert_close(weights.negative, slope)
    assert weights.positive == pytest.approx(float(2 * 3 * torch.tensor(-1.5, dtype=torch.float64).exp() / size))


@pytest.mark.parametrize("name", zoo.list_losses())
def test_every_objective_has_weights(name: str) -> None:
    loss_fn = zoo.get_loss(name, num_samples=100)
    before = {key: value.clone() for key, value in loss_fn.state_dict().items()}
    weights = gradient_weights(loss_fn)
    assert weights.negative.isfinite().all()
    assert weights.positive > 0
    assert loss_fn.training
    assert loss_fn.reduction == "mean"
    assert all(torch.equal(value, before[key]) for key, value in loss_fn.state_dict().items())


@pytest.mark.parametrize("similarity", [1.0, -1.0, 2.0])
def test_similarity_of_the_positive_is_checked(similarity: float) -> None:
    with pytest.raises(ValueError, match="positive_similarity"):
        gradient_weights(zoo.get_loss("dcl"), positive_similarity=similarity)


def test_picture_has_a_curve_for_each_loss() -> None:
    figure = plot_gradient_weights({str(t): zoo.get_loss("ntxent", temperature=t) for t in (0.1, 0.5)})
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["0.1", "0.5"]
    sizes = torch.tensor(figure.axes[0].lines[0].get_ydata()).abs()
    assert sizes.mean() == pytest.approx(1)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"contrastive-zoo\[plots\]"):
        plot_gradient_weights({})


FEATURES = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(300) % 3 + 5


def test_similarity_has_one_law_for_each_width() -> None:
    figure = zoo.plots.plot_similarity({"a": FEATURES, "b": FEATURES * 2, "narrow": FEATURES[:, :4]}, bins=16)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(lines) == ["a", "b", "narrow", "uniform, D = 16", "uniform, D = 4"]
    assert list(lines["a"]) == list(lines["b"])
    assert sum(lines["a"]) / 16 == pytest.approx(0.5)


def test_spectrum_begins_at_one_and_leaves_zeros_out() -> None:
    flat = FEATURES[:, :5] @ torch.eye(5, 16)
    figure = zoo.plots.plot_spectrum({"all": FEATURES, "flat": flat})
    full, five = (line.get_ydata() for line in figure.axes[0].lines)
    assert (len(full), len(five), full[0], five[0]) == (16, 5, 1, 1)


def test_class_means_of_a_simplex() -> None:
    corners = torch.eye(3)[CLASSES - 5] - 1 / 3
    figure = zoo.plots.plot_class_means(corners, CLASSES)
    cosines = torch.as_tensor(figure.axes[0].images[0].get_array().data)
    torch.testing.assert_close(cosines, 1.5 * torch.eye(3, dtype=cosines.dtype) - 0.5)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["5", "6", "7"]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_embedding_shows_the_first_points_by_class(method: str) -> None:
    clusters = 20 * torch.eye(16)[CLASSES] + FEATURES
    figure = zoo.plots.plot_embedding({"before": FEATURES, "after": clusters}, CLASSES, method=method, points=90)
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
    places = torch.as_tensor(figure.axes[1].collections[0].get_offsets().data)
    assert places.shape == (90, 2)
    means = torch.stack([places[CLASSES[:90] == label].mean(0) for label in (5, 6, 7)])
    apart = torch.cdist(means, means)[~torch.eye(3, dtype=torch.bool)].min()
    assert apart > 3 * (places - means[CLASSES[:90] - 5]).norm(dim=1).mean()


def test_embedding_in_the_plane_keeps_distances_of_flat_features() -> None:
    angles = torch.linspace(0, 3, 50, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1) @ torch.linalg.qr(FEATURES[:16].double()).Q[:2]
    (axes,) = zoo.plots.plot_embedding({"circle": circle}).axes
    places = torch.as_tensor(axes.collections[0].get_offsets().data)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(circle, circle), rtol=0, atol=1e-6)


def test_arguments_of_pictures_are_checked() -> None:
    with pytest.raises(ValueError, match="method"):
        zoo.plots.plot_embedding({"a": FEATURES}, method="umap")
    with pytest.raises(ValueError, match="labels"):
        zoo.plots.plot_class_means(FEATURES, torch.zeros(300, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^labels must"):
        zoo.plots.plot_embedding({"a": FEATURES}, CLASSES.float())
