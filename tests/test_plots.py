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
