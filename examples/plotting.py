"""Pictures of a training run and of a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from common import Evaluation
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

BLUE, ORANGE, GREY = "#3465a4", "#e07b39", "#8a8a8a"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}
# t-SNE takes a minute for ten thousand points, and more than a thousand say no more.
MOST_POINTS = 1000


def _note(axes: Axes, text: str, x: float, y: float, offset: tuple[float, float], **style: str) -> None:
    axes.annotate(text, (x, y), offset, textcoords="offset points", annotation_clip=False, **style)


def plot_training(history: Sequence[dict[str, Any]], name: str, path: Path) -> None:
    """What a log says: loss and learning rate by step, accuracy by epoch, and whether projections spread."""
    train = [line for line in history if "loss" in line]
    evaluations = [line for line in history if "knn" in line]
    with rc_context(STYLE):
        figure = Figure(figsize=(14, 3.8), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _plot_loss(left, train)
        left.set_title(f"Loss ({name})")
        epochs = [line["epoch"] for line in evaluations]
        for key, title, colour in (("knn", "k-NN", ORANGE), ("linear_probe", "linear probe", BLUE)):
            accuracy = [100 * line[key] for line in evaluations]
            middle.plot(epochs, accuracy, color=colour, marker="o", markersize=4, linewidth=2, label=title)
            middle.axhline(accuracy[0], color=colour, linestyle="--", linewidth=1, alpha=0.6)
            _note(middle, f"{accuracy[-1]:.1f}%", epochs[-1], accuracy[-1], (6, -4), color=colour, weight="bold")
        middle.set(title="Accuracy on held-out images", xlabel="epoch (dashed: before training)", ylabel="accuracy in %")
        middle.margins(y=0.15)
        middle.legend(frameon=False)
        right.plot(epochs, [line["effective_rank"] for line in evaluations], color=BLUE, marker="o", markersize=4)
        right.set(title="Projections", xlabel="epoch", ylabel="effective rank (1 is collapse)")
        right.yaxis.label.set_color(BLUE)
        spread = right.twinx()
        spread.plot(epochs, [line["uniformity"] for line in evaluations], color=ORANGE, marker="o", markersize=4)
        spread.set_ylabel("uniformity (0 is collapse)", color=ORANGE)
        spread.grid(False)
        figure.savefig(path, dpi=150)


def _plot_loss(axes: Axes, train: Sequence[dict[str, Any]]) -> None:
    """Loss of each step with its running mean, and the learning rate."""
    losses = np.asarray([line["loss"] for line in train])
    steps = np.asarray([line["step"] for line in train])
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1)
    window = max(1, len(losses) // 20)
    running = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[: len(running)] + (window - 1) / 2, running, color=BLUE, linewidth=2)
    axes.set(xlabel="step (grey: learning rate)", ylabel="loss")
    rates = axes.twinx()
    rates.plot(steps, [line["lr"] for line in train], color=GREY, linewidth=1)
    rates.set_axis_off()


def plot_embedding(before: Evaluation, after: Evaluation, classes: Sequence[str], name: str, path: Path) -> None:
    """The held-out images in two dimensions by t-SNE of their features, before and after, coloured by class."""
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 5.4), layout="constrained")
        for axes, evaluation, when in zip(figure.subplots(1, 2), (before, after), ("Before", f"After {name}"), strict=True):
            _scatter(axes, evaluation, classes)
            axes.set_title(f"{when}: k-NN accuracy {evaluation.figures['knn']:.1%}")
        figure.supxlabel("t-SNE of the backbone's features of held-out images", fontsize=10, color=GREY)
        figure.savefig(path, dpi=150)


def _scatter(axes: Axes, evaluation: Evaluation, classes: Sequence[str]) -> None:
    points = _two_dimensions(evaluation.features)
    labels = evaluation.labels[: len(points)].numpy()
    palette = colormaps["tab10"] if len(classes) <= 10 else colormaps["turbo"].resampled(len(classes))
    axes.scatter(*points.T, c=palette(labels), s=18, alpha=0.75, linewidths=0)
    for label in np.unique(labels) if len(classes) <= 20 else ():
        place = np.median(points[labels == label], axis=0)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": palette(int(label)), "alpha": 0.85}
        axes.text(*place, classes[label], ha="center", va="center", fontsize=10, fontweight="bold", bbox=box)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _two_dimensions(features: Tensor) -> NDArray[np.float32]:
    rows = F.normalize(features[:MOST_POINTS], dim=1).numpy()
    return TSNE(perplexity=min(30.0, len(rows) / 4), init="pca", random_state=0).fit_transform(rows)


def plot_judged(figures: dict[str, Any], features: Tensor, labels: Tensor, spectrum: Tensor, path: Path) -> None:
    """Accuracies, the held-out images in two dimensions, and how many directions their features use."""
    with rc_context(STYLE):
        figure = Figure(figsize=(15, 4.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        names = [name.replace("_", " ") for name in figures["accuracy"]][::-1]
        values = [100 * value for value in figures["accuracy"].values()][::-1]
        left.barh(names, values, color=BLUE)
        for name, value in zip(names, values, strict=True):
            _note(left, f"{value:.1f}", value, names.index(name), (4, -4))
        left.set(title="Accuracy on held-out images", xlabel="accuracy in %", xlim=(0, 110))
        _scatter(middle, Evaluation({}, features, labels), [str(label) for label in range(int(labels.max()) + 1)])
        middle.set_title("Features by t-SNE, coloured by class")
        right.plot(np.arange(1, len(spectrum) + 1), spectrum.clamp_min(1e-12), color=ORANGE, linewidth=2)
        right.set(title="Spectrum of the features", xlabel="direction", ylabel="variance", yscale="log")
        figure.savefig(path, dpi=150)


def plot_comparison(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean accuracies of each objective with their spread over seeds, and where its projections lie on the sphere."""
    before, *trained = rows
    trained = sorted(trained, key=lambda row: (row["mean"]["knn"], row["mean"]["linear_probe"]))
    names = [row["loss"] for row in trained]
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 1.8 + 0.35 * max(len(names), 5)), layout="constrained")
        left, right = figure.subplots(1, 2)
        for key, title, colour in (("knn", "k-NN", ORANGE), ("linear_probe", "linear probe", BLUE)):
            left.axvline(100 * before["mean"][key], color=colour, linestyle="--", linewidth=1, alpha=0.7)
            means, spreads = ([100 * row[what][key] for row in trained] for what in ("mean", "spread"))
            style = {"color": colour, "linestyle": "none", "marker": "o", "markersize": 7, "capsize": 3}
            left.errorbar(means, names, xerr=spreads, label=title, **style)
        left.set(
            title="Accuracy on held-out images", xlabel="accuracy in % with its spread over seeds; dashed: before training"
        )
        left.margins(y=0.08)
        figure.legend(frameon=False, loc="outside lower left", ncols=2)
        places = [(row["mean"]["alignment"], row["mean"]["uniformity"]) for row in trained]
        right.scatter(*zip(*places, strict=True), color=BLUE, s=55)
        for name, place in zip(names, places, strict=True):
            _note(right, name, *place, (7, -4))
        right.set(title="Projections", xlabel="alignment (lower is better)", ylabel="uniformity (lower is better)")
        right.margins(x=0.2)
        figure.savefig(path, dpi=150)
