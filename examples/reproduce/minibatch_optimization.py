"""Which mini-batches lead where the full batch leads: free vectors, every batch sampler, curves and Gram matrices.

    python examples/reproduce/minibatch_optimization.py                       # a minute or two on one core
    python examples/reproduce/minibatch_optimization.py --quick

Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906

Eight pairs of vectors are trained by SGD in batches of two. They start where recorded runs of the authors' code start; its
curves are the dots, and how far ours are from them is printed.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

import contrastive_zoo as zoo

RECORDED = Path(__file__).parents[2] / "tests" / "golden" / "batch_selection"
SAMPLES, BATCH, RATE, EVERY = 8, 2, 0.5, 20
PAIRS = torch.tensor(list(itertools.combinations(range(SAMPLES), BATCH)))
# Ours, the authors' name for it, and its colour.
SELECTIONS = {
    "full": ("full", "#000000"),
    "all pairs": ("NcB", "#3d7a2a"),
    "combinations": ("", "#7fb069"),
    "shuffle": ("s", "#8a8a8a"),
    "fixed": ("f", "#b03030"),
    "ordered": ("osgd_NcB", "#3465a4"),
    "spectral": ("sc_even", "#e07b39"),
}
# Selections that draw, and not what the authors drew.
RANDOM = {"combinations", "shuffle", "fixed", "spectral"}
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"}
# Text stays text, and ids do not change from run to run.
SVG = {"svg.fonttype": "none", "svg.hashsalt": "minibatch_optimization"}

Batches = Callable[[Tensor, Tensor], Iterator[Tensor]]


def losses_of(batches: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """InfoNCE loss at temperature 1, both directions added, of each of M batches (M, B) of vectors."""
    x, y = normalize(u, dim=1)[batches], normalize(v, dim=1)[batches]
    similarity = x @ y.mT
    positive = similarity.diagonal(dim1=1, dim2=2)
    return (similarity.logsumexp(2) + similarity.logsumexp(1) - 2 * positive).mean(1)


def full_loss(u: Tensor, v: Tensor) -> float:
    with torch.no_grad():
        return float(losses_of(torch.arange(len(u))[None], u, v))


def theory(dim: int) -> tuple[float, Tensor]:
    """Least full-batch loss and the Gram matrix that has it: a simplex (dim >= N - 1) or a cross-polytope (dim = N / 2)."""
    n = SAMPLES
    if dim >= n - 1:
        gram = (n * torch.eye(n) - 1) / (n - 1)
        return 2 * math.log(1 + (n - 1) * math.exp(-n / (n - 1))), gram
    antipodes = torch.eye(n).view(n // 2, 2, n).flip(1).reshape(n, n)
    return 2 * math.log(1 + math.exp(-2) + (n - 2) * math.exp(-1)), torch.eye(n) - antipodes


def selection(name: str, seed: int) -> Batches:
    """From the vectors to the updates of an epoch: each is a group (M, B) of batches whose mean loss is descended."""
    if name == "all pairs":
        return lambda u, v: iter([PAIRS])
    if name == "ordered":  # of all pairs the one with the highest loss, found anew before every update
        return lambda u, v: (PAIRS[losses_of(PAIRS, u, v).argmax()][None] for _ in range(SAMPLES // BATCH))
    size = {} if name == "full" else {"batch_size": BATCH}
    params = {"temperature": 1.0} if name == "spectral" else {}
    sampler = zoo.get_batch_sampler(name, num_samples=SAMPLES, seed=seed, **size, **params)

    def batches(u: Tensor, v: Tensor) -> Iterator[Tensor]:
        sampler.refresh(u, v, torch.arange(SAMPLES))
        return (torch.tensor(batch)[None] for batch in sampler)

    return batches


def train(u: Tensor, v: Tensor, batches: Batches, epochs: int) -> tuple[np.ndarray, Tensor]:
    """Full-batch loss after the first and after the last update of every 20th epoch (n, 2), and the Gram matrix at the end."""
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    curve = []
    for epoch in range(epochs):
        losses = []
        for group in batches(u.detach(), v.detach()):
            gradients = torch.autograd.grad(losses_of(group, u, v).mean(), (u, v))
            with torch.no_grad():
                for vectors, gradient in zip((u, v), gradients, strict=True):
                    vectors -= RATE * gradient
            if epoch % EVERY == 0:
                losses.append(full_loss(u, v))
        if losses:
            curve.append((losses[0], losses[-1]))
    return np.array(curve), (normalize(u, dim=1) @ normalize(v, dim=1).T).detach()


def arranged(gram: Tensor, dim: int) -> Tensor:
    """The Gram matrix with samples in the order that puts opposite ones side by side."""
    if dim >= SAMPLES - 1:
        return gram
    left, order = list(range(SAMPLES)), []
    while left:
        first = left.pop(0)
        opposite = min(left, key=lambda j: float(gram[first, j] + gram[j, first]))
        left.remove(opposite)
        order += [first, opposite]
    return gram[order][:, order]


def run(dim: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Curves and Gram matrices of all selections in one dimension, and the distance from the authors' curves."""
    recorded = np.load(RECORDED / f"synthetic_N{SAMPLES}_B{BATCH}_d{dim}.npz")
    u, v = torch.tensor(recorded["full_init_u"]), torch.tensor(recorded["full_init_v"])
    found: dict[str, Any] = {"theory": theory(dim)[0], "curves": {}, "grams": {}, "recorded": {}, "distance": {}}
    for name in tqdm(SELECTIONS, desc=f"d = {dim}"):
        curve, gram = train(u, v, selection(name, settings.seed), settings.epochs)
        # The authors log the ordered selection in the middle of an epoch.
        curve = curve[:, 0] if name == "ordered" else curve[:, 1]
        found["curves"][name], found["grams"][name] = curve.tolist(), arranged(gram, dim)
        if SELECTIONS[name][0]:
            theirs = recorded[f"{SELECTIONS[name][0]}_true_loss"][: len(curve)]
            found["recorded"][name] = theirs.tolist()
            found["distance"][name] = float(np.abs(curve[: len(theirs)] - theirs).max())
    return found


def plot(found: dict[int, dict[str, Any]], path: Path) -> None:
    """A row for each dimension: distance of the full-batch loss from the least one, then Gram matrices."""
    with rc_context({**STYLE, **SVG}):
        figure = Figure(figsize=(12, 3.6 * len(found)), layout="constrained")
        for row, (dim, results) in zip(np.atleast_1d(figure.subfigures(len(found), 1)), found.items(), strict=True):
            left, right = row.subfigures(1, 2, width_ratios=(1, 1.35))
            axes = left.subplots()
            for name, curve in results["curves"].items():
                colour, steps = SELECTIONS[name][1], EVERY * np.arange(len(curve))
                axes.semilogy(steps, np.maximum(np.array(curve) - results["theory"], 1e-12), color=colour, label=name)
                theirs = np.array(results["recorded"].get(name, []))[::5] - results["theory"]
                axes.plot(EVERY * 5 * np.arange(len(theirs)), np.maximum(theirs, 1e-12), ".", color=colour, markersize=5)
            shape = "simplex" if dim >= SAMPLES - 1 else "cross-polytope"
            axes.set(title=f"d = {dim}: full-batch loss above that of the {shape}", xlabel="epoch", ylim=(1e-6, 10))
            axes.legend(fontsize=8, frameon=False, loc="lower left")
            plot_grams(right, {"theory": theory(dim)[1], **results["grams"]})
        figure.savefig(path, metadata={"Date": None})


def plot_grams(figure: Any, grams: dict[str, Tensor]) -> None:
    for axes, (name, gram) in zip(figure.subplots(2, 4).flat, grams.items(), strict=True):
        image = axes.imshow(gram.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[])
        axes.grid(False)
    figure.colorbar(image, ax=figure.axes, shrink=0.7, label="⟨u, v⟩")


def report(found: dict[int, dict[str, Any]]) -> str:
    lines = ["full-batch loss above the least one, and largest distance from the authors' recorded curve"]
    for dim, results in found.items():
        lines += ["", f"d = {dim}, least loss {results['theory']:.6f}", f"{'':14}{'at the end':>12}{'from recorded':>15}"]
        for name, curve in results["curves"].items():
            distance = f"{results['distance'][name]:15.1e}" if name in results["distance"] else f"{'':15}"
            remark = "  other draws" if name in RANDOM and name in results["distance"] else ""
            lines.append(f"{name:14}{curve[-1] - results['theory']:12.1e}{distance}{remark}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="updates of the full batch (default: 2000; 41 with --quick)")
    parser.add_argument("--seed", type=int, default=0, help="of the random selections (default: 0)")
    parser.add_argument("--output", default="runs/minibatch_optimization", help="folder for the picture and the figures")
    parser.add_argument("--quick", action="store_true", help="a few updates, to see that everything works")
    settings = parser.parse_args(argv)
    settings.epochs = settings.epochs or (41 if settings.quick else 2000)
    torch.set_num_threads(1)  # matrices of eight rows
    found = {dim: run(dim, settings) for dim in (16, 4)}
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    plot(found, folder / "minibatch_optimization.svg")
    kept = ("theory", "curves", "distance")
    figures = {dim: {key: results[key] for key in kept} for dim, results in found.items()}
    (folder / "minibatch_optimization.json").write_text(json.dumps(figures))
    print(report(found))
    return found


if __name__ == "__main__":
    main()
