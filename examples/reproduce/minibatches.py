"""Which mini-batches lead where the full batch leads, and does it pay to choose them? Free vectors, then cluttered digits.

    python examples/reproduce/minibatches.py            # five minutes on two cores
    python examples/reproduce/minibatches.py --quick

After Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906

Free vectors are those of `minibatch_optimization.py`, from random starts. On digits every selection has the same number of
steps; measured by step and by second of the processor, the selection and the features for it included: the loss of all training
samples as one batch, the accuracy, and how many held-out images find their own view, as they are and with noise.
"""

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import digits
import minibatch_optimization as vectors
import numpy as np
import torch
from experiment import Claim, Result, Run, arguments, carry_out, difference, picture, spread, table, values, write
from torch import Tensor

import contrastive_zoo as zoo

NAME = "minibatches"
COLOURS = {name: colour for name, (_, colour) in vectors.SELECTIONS.items()} | {"bisection": "#9467bd"}
DIMS = (16, 4)
SELECTIONS: dict[str, dict[str, Any]] = {
    "shuffle": {},
    "combinations": {},
    "fixed": {},
    "ordered": {"k": 4, "q": 2},
    "spectral": {"k": 10},
    "bisection": {"k": 10},
}
BATCH, TEMPERATURE, NOISE = 32, 0.5, 0.5
# Free vectors whose loss is above the least one by less than this part of it have arrived.
ARRIVED = 0.02
FIGURES = {
    "loss": ("loss of all pairs", 4),
    "linear_probe": ("linear probe, %", 1),
    "found": ("retrieval, %", 1),
    "found_noisy": ("retrieval with noise, %", 1),
}


def optimise_vectors(run: Run) -> Result:
    """How far the full-batch loss of eight pairs of free vectors stays above the least one."""
    torch.manual_seed(run["seed"])
    u, v = torch.randn(2, vectors.SAMPLES, run["dim"], dtype=torch.float64)
    curve, _ = vectors.train(u, v, vectors.selection(run["selection"], run["seed"]), run["epochs"])
    return {"excess": float(curve[-1, 1]) - vectors.theory(run["dim"])[0]}


def chosen(run: Run, data: digits.Digits) -> digits.Batches:
    """Batches of an epoch, as many for every selection; features are new before each pass of a sampler that needs them."""
    params = dict(SELECTIONS[run["selection"]])
    if run["selection"] in ("spectral", "bisection"):
        params["temperature"] = TEMPERATURE
    if run["selection"] == "ordered":
        params["loss"] = zoo.get_loss("infonce", temperature=TEMPERATURE)
    count, size = len(data.images), run["batch_size"]
    sampler = zoo.get_batch_sampler(run["selection"], num_samples=count, batch_size=size, seed=run["seed"], **params)

    def batches(epoch: int, model: digits.Model) -> Iterator[Tensor]:
        left = count // size
        while left:
            if sampler.needs_features:
                sampler.refresh(*digits.projections(model, data), torch.arange(count))
            for batch in list(sampler)[:left]:
                left -= 1
                yield torch.tensor(batch)

    return batches


@torch.no_grad()
def measure(model: digits.Model, data: digits.Digits) -> dict[str, float]:
    """All of `FIGURES`, on the same views every time."""
    draws = torch.Generator().manual_seed(0)
    images = digits.plain(data.held_out)
    noisy = images + NOISE * torch.randn(images.shape, generator=draws)
    views = digits.shifted(data.held_out, draws)
    plain, corrupted, keys = (model.eval()(x) for x in (images, noisy, views))
    loss = zoo.functional.infonce(*digits.projections(model, data), temperature=TEMPERATURE)

    def found(queries: Tensor) -> float:
        return 100 * zoo.metrics.retrieval_accuracy(queries, keys, k=(1,)).z1_to_z2[1]

    accuracies = digits.accuracies(model, data)
    return {
        "loss": float(loss),
        "linear_probe": accuracies["linear_probe"],
        "found": found(plain),
        "found_noisy": found(corrupted),
    }


def train(run: Run) -> Result:
    """Figures after some of the epochs, with the seconds of training up to there."""
    data = digits.load(run["samples"], run["samples"] // 2)
    curve: list[dict[str, float]] = []
    spent, started = 0.0, time.process_time()

    def watch(epoch: int, model: digits.Model) -> None:
        nonlocal spent, started
        spent += time.process_time() - started
        if epoch % 2 == 0 or epoch == run["epochs"]:
            curve.append({"epoch": epoch, "cpu": spent, **measure(model, data)})
        started = time.process_time()

    sizes = {"batch_size": run["batch_size"], "epochs": run["epochs"], "seed": run["seed"]}
    digits.train(zoo.get_loss("infonce", temperature=TEMPERATURE), data, **sizes, batches=chosen(run, data), watch=watch)
    return {**curve[-1], "curve": curve}


def do(run: Run) -> Result:
    return optimise_vectors(run) if run["part"] == "vectors" else train(run)


def runs(settings: Namespace) -> list[Run]:
    made: list[Run] = []
    sizes = {"epochs": settings.epochs, "samples": settings.samples, "batch_size": settings.batch_size}
    for seed in range(settings.seeds):
        for name in vectors.SELECTIONS:
            for dim in DIMS:
                made.append({"part": "vectors", "selection": name, "dim": dim, "epochs": settings.updates, "seed": seed})
        for name in SELECTIONS:
            made.append({"part": "digits", "selection": name, **sizes, "seed": seed})
    return made


def excess(results: Sequence[Result], selection: str, dim: int) -> np.ndarray[Any, Any]:
    return values([r for r in results if r["part"] == "vectors"], "excess", selection=selection, dim=dim)


def at_end(results: Sequence[Result], selection: str, figure: str) -> np.ndarray[Any, Any]:
    return values([r for r in results if r["part"] == "digits"], figure, selection=selection)


def tables(results: Sequence[Result]) -> str:
    rows = []
    for name in vectors.SELECTIONS:
        found = [excess(results, name, dim) for dim in DIMS]
        rows.append([f"`{name}`", *(f"{one.mean():.2g} ± {one.std(ddof=1):.1g}" for one in found)])
    shapes = ("simplex, d = 16", "cross-polytope, d = 4")
    made = [table(["free vectors: full-batch loss above the least one", *shapes], rows)]
    rows = []
    for name in SELECTIONS:
        found = [spread(at_end(results, name, key), places) for key, (_, places) in FIGURES.items()]
        rows.append([f"`{name}`", *found, f"{at_end(results, name, 'cpu').mean():.0f}"])
    made.append(table(["cluttered digits", *(title for title, _ in FIGURES.values()), "seconds"], rows))
    return "\n".join(made)


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the paper proves of free vectors, and what choosing batches does to an encoder."""
    made = []
    for name in vectors.SELECTIONS:
        parts = [excess(results, name, dim) / vectors.theory(dim)[0] for dim in DIMS]
        if name == "fixed":
            above = difference(np.min(parts, axis=0), np.full(len(parts[0]), ARRIVED))
            text = (
                f"Free vectors: `fixed` batches stay above the least loss by more than {ARRIVED:.0%}, in 16 and 4 dimensions."
            )
            made.append(Claim(text, above.verdict(), f"{100 * np.min(parts, axis=0).mean():.2g} ± {100 * above.half:.2g}%"))
        else:
            above = difference(np.max(parts, axis=0), np.zeros(len(parts[0])))
            text = f"Free vectors: `{name}` comes to the least loss within {ARRIVED:.0%}, in 16 and 4 dimensions."
            made.append(Claim(text, above.below(ARRIVED), f"{100 * above.mean:.2g} ± {100 * above.half:.2g}%"))
    for name in ("ordered", "spectral", "bisection"):
        lower = difference(at_end(results, "shuffle", "loss"), at_end(results, name, "loss"))
        made.append(
            Claim(f"Digits: `{name}` reaches a lower loss of all pairs than `shuffle`.", lower.verdict(), f"{lower} lower")
        )
        for figure, what in (("found", "more images find their view"), ("linear_probe", "the linear probe is more accurate")):
            gain = difference(at_end(results, name, figure), at_end(results, "shuffle", figure))
            made.append(Claim(f"Digits: with `{name}` {what} than with `shuffle`.", gain.verdict(), f"{gain} points"))
    above = difference(at_end(results, "fixed", "loss"), at_end(results, "shuffle", "loss"))
    made.append(
        Claim("Digits: `fixed` batches leave a higher loss of all pairs than `shuffle`.", above.verdict(), f"{above} higher")
    )
    return made


def draw(results: Sequence[Result], path: Path) -> None:
    """Free vectors on the left; on the right digits, a row by epoch and one by second."""
    with picture(path, 13, 5.6) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 3.4))
        draw_vectors(left.subplots(), results)
        grid = right.subplots(2, len(FIGURES), sharey="col")
        for row, (unit, name) in zip(grid, (("epoch", "epoch"), ("cpu", "seconds")), strict=True):
            for axes, (key, (title, _)) in zip(row, FIGURES.items(), strict=True):
                for selection in SELECTIONS:
                    line(
                        axes, [r["curve"] for r in results if r["part"] == "digits" and r["selection"] == selection], unit, key
                    )
                    axes.lines[-1].set(color=COLOURS[selection], label=selection)
                    axes.collections[-1].set(color=COLOURS[selection])
                axes.set(xlabel=name, title=title if unit == "epoch" else "")
        right.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SELECTIONS), frameon=False)


def draw_vectors(axes: Any, results: Sequence[Result]) -> None:
    """How far each seed stays above the least loss, in both dimensions."""
    names = list(vectors.SELECTIONS)[::-1]
    for dim, marker in zip(DIMS, "os", strict=True):
        for place, name in enumerate(names):
            above = 100 * excess(results, name, dim) / vectors.theory(dim)[0]
            style = {"color": COLOURS[name], "marker": marker, "linestyle": "none", "markersize": 5, "alpha": 0.7}
            axes.plot(np.maximum(above, 1e-3), np.full(len(above), place), **style)
        axes.plot([], [], color="#444444", marker=marker, linestyle="none", markersize=5, label=f"d = {dim}")
    axes.axvline(100 * ARRIVED, color="#444444", linewidth=0.8)
    axes.set(xscale="log", xlabel="% above the least loss", title="free vectors", yticks=range(len(names)), yticklabels=names)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def line(axes: Any, curves: Sequence[list[dict[str, float]]], unit: str, key: str) -> None:
    """Mean over seeds, and from the least to the largest."""
    x = np.mean([[point[unit] for point in curve] for curve in curves], axis=0)
    y = np.array([[point[key] for point in curve] for curve in curves])
    axes.plot(x[1:], y.mean(0)[1:], linewidth=1.8)
    axes.fill_between(x[1:], y.min(0)[1:], y.max(0)[1:], alpha=0.12, linewidth=0)


def main(given: Sequence[str] | None = None) -> list[Result]:
    parser = arguments(NAME, __doc__)
    parser.add_argument("--epochs", type=int, default=16, help="passes over as many digits as there are")
    settings = parser.parse_args(given)
    settings.samples, settings.batch_size, settings.updates = 2_000, BATCH, 2_001
    if settings.quick:
        settings.samples, settings.batch_size, settings.updates, settings.epochs, settings.seeds = 96, 8, 21, 2, 2

    def seconds(run: Run) -> float:
        if run["part"] == "vectors":
            return 0.001 * run["epochs"]
        return 1.5 * run["epochs"] * run["samples"] * digits.seconds_per_sample(run["batch_size"])

    results = carry_out(runs(settings), do, seconds, settings)
    draw(results, settings.output / f"{NAME}.svg")
    write(NAME, settings, results, tables(results), claims(results))
    return results


if __name__ == "__main__":
    main()
