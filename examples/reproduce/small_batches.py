"""Do small batches harm? The global loss and the accuracy of six objectives in batches of 16, 64 and 256, for as many samples.

    python examples/reproduce/small_batches.py            # seven minutes on two free cores
    python examples/reproduce/small_batches.py --quick

After Yuan et al., "Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm Performance",
ICML 2022. arXiv:2202.12387
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import digits
import numpy as np
from experiment import (
    COLOURS,
    Claim,
    Result,
    Run,
    arguments,
    carry_out,
    difference,
    picture,
    spread,
    table,
    values,
    write,
)
from matplotlib.axes import Axes

import contrastive_zoo as zoo

NAME = "small_batches"
LOSSES = ("ntxent", "dcl", "sogclr", "emc2", "dhel", "kcl")
SIZES = (16, 64, 256)
# The weight of the new value in the moving averages of sogclr: that of the authors first, then longer memories.
GAMMAS = (0.9, 0.5, 0.1)
TEMPERATURE = 0.1
Figures = np.ndarray[Any, Any]
# A difference of accuracy, in points, that does no harm.
MARGIN = 2.0


def train(run: Run) -> Result:
    """The figures of one run at its end."""
    data = digits.load(run["samples"])
    # dhel and kcl have a temperature and a kernel of their own: their defaults.
    params: dict[str, Any] = {"temperature": TEMPERATURE} if run["loss"] not in ("dhel", "kcl") else {}
    if run["gamma"] is not None:
        params["gamma"] = run["gamma"]
    loss_fn = zoo.get_loss(run["loss"], num_samples=run["samples"], seed=run["seed"], **params)
    model = digits.train(loss_fn, data, batch_size=run["batch_size"], epochs=run["epochs"], seed=run["seed"])
    global_loss = zoo.metrics.global_contrastive_loss(*digits.projections(model, data), temperature=TEMPERATURE)
    return {"global_loss": global_loss, **digits.accuracies(model, data)}


def runs(settings: argparse.Namespace) -> list[Run]:
    """Every objective with every batch size, and sogclr with every gamma in the smallest, which has twice the seeds."""
    smallest = settings.sizes[0]
    kinds: list[tuple[str, float | None, int]] = [
        (loss, GAMMAS[0] if loss == "sogclr" else None, size) for size in settings.sizes for loss in LOSSES
    ]
    kinds += [("sogclr", gamma, smallest) for gamma in GAMMAS[1:]]
    return [
        {"loss": loss, "gamma": gamma, "batch_size": size, "epochs": settings.epochs, "samples": settings.samples, "seed": seed}
        for seed in range(2 * settings.seeds)
        for loss, gamma, size in kinds
        if seed < settings.seeds or size == smallest
    ]


def label(loss: str, gamma: float | None) -> str:
    return f"`{loss}`" + ("" if gamma is None else f", gamma {gamma:g}")


def kinds_of(results: Sequence[Result]) -> list[tuple[str, float | None]]:
    """Each objective with its gamma, once."""
    return list(dict.fromkeys((result["loss"], result["gamma"]) for result in results))


def tables(results: Sequence[Result], sizes: Sequence[int]) -> str:
    """The global loss, and both accuracies, of each objective by batch size."""
    made = []
    for figure, title, places in (
        ("global_loss", f"global loss at temperature {TEMPERATURE}", 3),
        ("linear_probe", "linear probe, %", 1),
        ("knn", "k-NN, %", 1),
    ):
        rows = []
        for loss, gamma in kinds_of(results):
            found = [values(results, figure, loss=loss, gamma=gamma, batch_size=size) for size in sizes]
            harm = str(difference(*paired(found[0], found[-1]))) if len(found[-1]) else ""
            rows.append([label(loss, gamma), *(spread(one, places) if len(one) else "" for one in found), harm])
        columns = [title, *(f"batches of {size}" for size in sizes), f"{sizes[0]} less {sizes[-1]}"]
        made.append(table(columns, rows))
    return "\n".join(made)


def paired(first: Figures, second: Figures) -> tuple[Figures, Figures]:
    """The runs of the seeds that both have."""
    count = min(len(first), len(second))
    return first[:count], second[:count]


def claims(results: Sequence[Result], sizes: Sequence[int]) -> list[Claim]:
    """What the paper and its successors say about small batches."""
    small, large = sizes[0], sizes[-1]

    def figures(key: str, loss: str, size: int = small, gamma: float = GAMMAS[0]) -> Figures:
        return values(results, key, loss=loss, gamma=gamma if loss == "sogclr" else None, batch_size=size)

    def harm(loss: str) -> tuple[Figures, Figures]:
        return paired(figures("linear_probe", loss, large), figures("linear_probe", loss))

    found = difference(*harm("ntxent"))
    evidence = f"{large} less {small}: {found} points"
    made = [Claim(f"Batches of {small} harm `ntxent`, against {large}.", found.verdict(), evidence)]
    found = difference(*harm("sogclr"))
    evidence = f"{large} less {small}: {found} points"
    made.append(Claim(f"They do not harm `sogclr` by more than {MARGIN:g} points.", found.below(MARGIN), evidence))
    found = difference(np.subtract(*harm("ntxent")), np.subtract(*harm("sogclr")))
    made.append(Claim("They harm `sogclr` less than `ntxent`.", found.verdict(), f"difference of the harms: {found} points"))
    for loss in LOSSES[1:]:
        found = difference(figures("linear_probe", loss), figures("linear_probe", "ntxent"))
        text = f"In batches of {small} `{loss}` is better than `ntxent`"
        made.append(Claim(f"{text}: accuracy.", found.verdict(), f"`{loss}` less `ntxent`: {found} points"))
        if loss in ("dcl", "sogclr", "emc2"):  # the others minimise something else
            lower = difference(figures("global_loss", "ntxent"), figures("global_loss", loss))
            made.append(Claim(f"{text}: global loss.", lower.verdict(), f"`ntxent` less `{loss}`: {lower}"))
    for gamma in GAMMAS[1:]:
        found = difference(figures("linear_probe", "sogclr", gamma=gamma), figures("linear_probe", "sogclr"))
        lower = difference(figures("global_loss", "sogclr"), figures("global_loss", "sogclr", gamma=gamma))
        text = f"In batches of {small} `sogclr` is better with gamma {gamma:g} than with the authors' {GAMMAS[0]:g}"
        made.append(Claim(f"{text}: accuracy.", found.verdict(), f"{gamma:g} less {GAMMAS[0]:g}: {found} points"))
        made.append(Claim(f"{text}: global loss.", lower.verdict(), f"{GAMMAS[0]:g} less {gamma:g}: {lower}"))
    return made


def draw(results: Sequence[Result], sizes: Sequence[int], path: Path) -> None:
    """Global loss and accuracy by batch size, and accuracy by the gamma of sogclr."""
    with picture(path, 11, 3.8) as figure:
        left, middle, right = figure.subplots(1, 3)
        for loss in LOSSES:
            gamma = GAMMAS[0] if loss == "sogclr" else None
            for axes, key in ((left, "global_loss"), (middle, "linear_probe")):
                line(axes, [values(results, key, loss=loss, gamma=gamma, batch_size=size) for size in sizes], sizes, loss)
        found = [values(results, "linear_probe", loss="sogclr", gamma=gamma, batch_size=sizes[0]) for gamma in GAMMAS]
        line(right, found, GAMMAS, "sogclr")
        left.set(title="Global loss of the training samples", ylabel=f"at temperature {TEMPERATURE}")
        middle.set(title="Linear probe", ylabel="accuracy in %")
        right.set(title=f"sogclr in batches of {sizes[0]}", xlabel="gamma", ylabel="linear probe, accuracy in %")
        for axes in (left, middle):
            axes.set_xscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("batch size")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(LOSSES), frameon=False)


def line(axes: Axes, found: Sequence[Any], places: Sequence[float], loss: str) -> None:
    """Means over seeds with their standard deviations."""
    spreads = [np.std(one, ddof=1) if len(one) > 1 else 0.0 for one in found]
    options = {"color": COLOURS[loss], "marker": "o", "markersize": 4, "capsize": 2}
    axes.errorbar(places, [np.mean(one) for one in found], yerr=spreads, label=loss, **options)


def main(given: Sequence[str] | None = None) -> list[Result]:
    parser = arguments(NAME, __doc__)
    parser.add_argument("--epochs", type=int, default=6, help="passes over the samples, for every batch size")
    settings = parser.parse_args(given)
    settings.samples, settings.sizes = 4_000, SIZES
    if settings.quick:
        settings.samples, settings.sizes, settings.epochs, settings.seeds = 64, (8, 32), 1, 1

    def seconds(run: Run) -> float:
        return run["epochs"] * run["samples"] * digits.seconds_per_sample(run["batch_size"])

    results = carry_out(runs(settings), train, seconds, settings)
    draw(results, settings.sizes, settings.output / f"{NAME}.svg")
    write(NAME, settings, results, tables(results, settings.sizes), claims(results, settings.sizes))
    return results


if __name__ == "__main__":
    main()
