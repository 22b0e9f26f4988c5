"""Do hard negatives and normalisation lead to neural collapse? SCL and HSCL on labelled digits, measured along training.

    python examples/reproduce/hard_negatives.py            # five minutes on two cores
    python examples/reproduce/hard_negatives.py --quick

After Jiang et al., "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural- vs
Dimensional-Collapse", 2023. arXiv:2311.05139

As in the paper: images without augmentation, one view of each, Adam, and measures of the training images.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import digits
import numpy as np
import torch
import torch.nn.functional as F
from experiment import Claim, Result, Run, arguments, carry_out, difference, picture, spread, table, values, write
from torch import Tensor

import contrastive_zoo as zoo

NAME = "hard_negatives"
# beta = 0 is SCL.
BETAS = (0, 5, 30)
NORMALISATIONS: dict[str, Any] = {"sphere": "sphere", "ball": "ball", "none": False}
BATCH, LR, EVERY = 128, 3e-3, 5
# Class means whose cosines miss those of a simplex by less than this, on average, count as one.
MARGIN = 0.1
CLASSES = 10
MEASURES = {
    "unit_norm": "unit norm",
    "zero_sum": "zero sum",
    "equal_inner_product": "equal inner products",
    "within_class": "within-class distance",
    "dimensions": "dimensions of the class means",
    "accuracy": "nearest class mean, %",
}


def project(rows: Tensor, normalisation: str) -> Tensor:
    """Rows as the loss sees them."""
    if normalisation == "sphere":
        return F.normalize(rows, dim=1)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1) if normalisation == "ball" else rows


def class_means(rows: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([rows[labels == label].double().mean(0) for label in labels.unique()])


def measure(model: digits.Model, data: digits.Digits, normalisation: str) -> dict[str, float]:
    """All of `MEASURES`: of the training images, but for the accuracy, which is of the held-out ones."""
    train, held_out = (project(digits.embed(model, images), normalisation) for images in (data.images[:, 0], data.held_out))
    found = zoo.metrics.neural_collapse(train, data.labels)
    means = class_means(train, data.labels)
    return {
        "unit_norm": found.unit_norm,
        "zero_sum": found.zero_sum,
        "equal_inner_product": found.equal_inner_product,
        "within_class": zoo.metrics.within_class_distance(train, data.labels),
        "dimensions": zoo.metrics.effective_rank(means - means.mean(0)),
        "accuracy": 100 * zoo.metrics.nearest_class_mean(train, data.labels, held_out, data.held_out_labels),
    }


def hscl(beta: float, normalisation: str) -> zoo.Loss:
    return zoo.get_loss("hscl", beta=beta, normalize=NORMALISATIONS[normalisation])


def train(run: Run) -> Result:
    """Measures every few epochs, and at the end the spectrum of the class means and the losses at every beta."""
    torch.manual_seed(run["seed"])
    data = digits.load(run["samples"], run["samples"] // 4)
    images = digits.plain(data.images[:, 0])
    model, loss_fn = digits.Model(digits.usual_head()), hscl(run["beta"], run["normalisation"])
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    draws = torch.Generator().manual_seed(run["seed"])
    epochs, curve = [], []
    for epoch in range(run["epochs"] + 1):
        if epoch % EVERY == 0 or epoch == run["epochs"]:
            epochs.append(epoch)
            curve.append(measure(model, data, run["normalisation"]))
        if epoch == run["epochs"]:
            break
        for index in digits.shuffled(len(images), BATCH, draws):
            optimizer.zero_grad()
            loss_fn(model(images[index]), labels=data.labels[index]).backward()
            optimizer.step()
    rows = digits.embed(model, data.images[:, 0])
    spectrum = zoo.metrics.spectrum(class_means(project(rows, run["normalisation"]), data.labels))[: CLASSES - 1]
    return {
        **curve[-1],
        "epochs_measured": epochs,
        "curve": curve,
        "spectrum": (spectrum / spectrum[0]).tolist(),
        "losses": [float(hscl(beta, run["normalisation"]).eval()(rows, labels=data.labels)) for beta in BETAS],
    }


def runs(settings: Any) -> list[Run]:
    return [
        {"normalisation": name, "beta": beta, "epochs": settings.epochs, "samples": settings.samples, "seed": seed}
        for seed in range(settings.seeds)
        for name in NORMALISATIONS
        for beta in BETAS
    ]


def least_loss() -> float:
    """The least SCL loss of unit rows: classes at the corners of a simplex."""
    return math.log1p(math.exp(-CLASSES / (CLASSES - 1)))


def tables(results: Sequence[Result]) -> str:
    """All measures at the end, and the loss without hard negatives."""
    rows = []
    for name in NORMALISATIONS:
        for beta in BETAS:
            found = {key: values(results, key, normalisation=name, beta=beta) for key in MEASURES}
            places = {"dimensions": 2, "accuracy": 1}
            figures = [spread(found[key], places.get(key, 3)) for key in MEASURES]
            rows.append([name, f"{beta}" if beta else "0 (`scl`)", *figures, spread(losses(results, name, beta)[:, 0], 4)])
    title = f"`scl` loss of all (least on the sphere: {least_loss():.4f})"
    return table(["normalisation", "beta", *MEASURES.values(), title], rows)


def losses(results: Sequence[Result], normalisation: str, beta: float) -> np.ndarray[Any, Any]:
    """(seeds, betas): losses of the trained features at every beta."""
    return np.array([r["losses"] for r in results if r["normalisation"] == normalisation and r["beta"] == beta])


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the paper proves, and what it shows by experiments."""

    def of(figure: str, normalisation: str, beta: float) -> np.ndarray[Any, Any]:
        return values(results, figure, normalisation=normalisation, beta=beta)

    every = np.array([result["losses"] for result in results])
    worst = float((every[:, 1:] - every[:, :1]).min())
    made = [
        Claim(
            "The `hscl` loss of any features is at least their `scl` loss.",
            "holds" if worst > -1e-6 else "the opposite shows",
            f"least difference of {every[:, 1:].size} pairs: {worst:+.2g}",
        )
    ]
    for beta in BETAS:
        farther = np.maximum(of("equal_inner_product", "sphere", beta), of("equal_inner_product", "ball", beta))
        angles = difference(farther, np.zeros(len(farther)))
        text = (
            f"{label(beta)}: on the sphere and in the ball, class means come to a simplex (equal inner products to {MARGIN:g})."
        )
        made.append(Claim(text, angles.below(MARGIN), f"{angles.mean:.3f} ± {angles.half:.2g}"))
    for beta in BETAS[1:]:
        nearer = [of("equal_inner_product", name, 0) - of("equal_inner_product", name, beta) for name in ("sphere", "ball")]
        gain = difference(np.min(nearer, axis=0), np.zeros(len(nearer[0])))
        text = f"{label(beta)}: on the sphere and in the ball, class means come nearer to a simplex than by `scl`."
        made.append(Claim(text, gain.verdict(), f"{gain} nearer"))
        gains = [of("dimensions", name, beta) - of("dimensions", name, 0) for name in ("sphere", "ball")]
        gain = difference(np.min(gains, axis=0), np.zeros(len(gains[0])))
        text = f"{label(beta)}: on the sphere and in the ball, class means use more dimensions than by `scl`."
        made.append(Claim(text, gain.verdict(), f"{gain} of {CLASSES - 1}"))
    for beta in BETAS:
        angles = difference(of("equal_inner_product", "none", beta), of("equal_inner_product", "sphere", beta))
        lost = difference(of("dimensions", "sphere", beta), of("dimensions", "none", beta))
        text = f"{label(beta)}: without normalisation, class means"
        made.append(Claim(f"{text} are farther from a simplex than on the sphere.", angles.verdict(), f"{angles}"))
        made.append(Claim(f"{text} use fewer dimensions.", lost.verdict(), f"{lost} fewer"))
    return made


def label(beta: float) -> str:
    return f"`hscl` with beta {beta}" if beta else "`scl`"


def draw(results: Sequence[Result], path: Path) -> None:
    """Distance from a simplex along training above, spectrum of the class means at the end below."""
    colours = dict(zip(BETAS, ("#3465a4", "#e07b39", "#7fb069"), strict=True))
    with picture(path, 11, 6.2) as figure:
        grid = figure.subplots(2, len(NORMALISATIONS), sharey="row")
        for name, (above, below) in zip(NORMALISATIONS, grid.T, strict=True):
            for beta in BETAS:
                chosen = [r for r in results if r["normalisation"] == name and r["beta"] == beta]
                curves = [[point["equal_inner_product"] for point in result["curve"]] for result in chosen]
                style = {"color": colours[beta], "label": f"beta {beta}"}
                band(above, chosen[0]["epochs_measured"], curves, style)
                band(below, range(1, CLASSES), [result["spectrum"] for result in chosen], style)
            above.set(yscale="log", title=f"normalisation: {name}", xlabel="epoch")
            below.set(yscale="log", xlabel="dimension of the class means", xticks=range(1, CLASSES))
        grid[0, 0].set_ylabel("cosines of class means:\ndistance from a simplex")
        grid[1, 0].set_ylabel("variance over the largest")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(BETAS), frameon=False)


def band(axes: Any, x: Sequence[int], found: Sequence[Sequence[float]], style: dict[str, Any]) -> None:
    """Mean over seeds, and from the least to the largest."""
    y = np.maximum(np.array(found), 1e-6)
    axes.plot(x, y.mean(0), linewidth=1.8, **style)
    axes.fill_between(x, y.min(0), y.max(0), color=style["color"], alpha=0.15, linewidth=0)


def main(given: Sequence[str] | None = None) -> list[Result]:
    parser = arguments(NAME, __doc__)
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images")
    settings = parser.parse_args(given)
    settings.samples = 4_000
    if settings.quick:
        settings.samples, settings.epochs, settings.seeds = 256, 1, 2

    def seconds(run: Run) -> float:
        # One view in place of two; measuring takes a fifth of the time of training.
        return 0.6 * run["epochs"] * run["samples"] * digits.seconds_per_sample(BATCH)

    results = carry_out(runs(settings), train, seconds, settings)
    draw(results, settings.output / f"{NAME}.svg")
    write(NAME, settings, results, tables(results), claims(results))
    return results


if __name__ == "__main__":
    main()
