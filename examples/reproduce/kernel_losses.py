"""DHEL and KCL: does the expected loss depend on the batch size, and do projections use more of the sphere?

    python examples/reproduce/kernel_losses.py            # five minutes on two cores
    python examples/reproduce/kernel_losses.py --quick

After Koromilas et al., "Bridging Mini-Batch and Asymptotic Analysis in Contrastive Learning: From InfoNCE to Kernel-Based
Losses", ICML 2024. arXiv:2405.18045
"""

import itertools
import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import digits
import numpy as np
import torch
from experiment import COLOURS, Claim, Result, Run, arguments, carry_out, difference, picture, spread, table, values, write
from torch import Tensor

import contrastive_zoo as zoo

NAME = "kernel_losses"
# Objective and gamma of kcl: the default, and one that gives alignment more weight.
KINDS: tuple[tuple[str, float | None], ...] = (("ntxent", None), ("dcl", None), ("dhel", None), ("kcl", 16.0), ("kcl", 4.0))
RIVALS = ("ntxent", "dcl")
TEMPERATURES = (0.1, 0.3, 1.0)
HEADS = {"usual": digits.usual_head, "normalised": digits.normalised_head}
BATCH = 64
# Features whose batches are all visited, and features whose batches are drawn.
FEW, MANY, WIDTH, DRAWN = 10, 512, 16, 1_000
FEW_SIZES, MANY_SIZES = (2, 3, 4, 6, 8), (8, 32, 128)
BIAS_TEMPERATURE = 0.3
FIGURES = {
    "effective_rank": ("effective rank", 1),
    "wasserstein": ("distance to uniformity", 3),
    "linear_probe": ("linear probe, %", 1),
}


def few_sizes(count: int) -> list[int]:
    """Batch sizes of which all batches are visited."""
    return [size for size in FEW_SIZES if size < count]


def build(loss: str, gamma: float | None, temperature: float) -> zoo.Loss:
    """The objective; the Gaussian kernel of unit rows at distance d is exp(s / temperature), up to a factor."""
    params = {"temperature": temperature} if gamma is None else {"t": 1 / (2 * temperature), "gamma": gamma}
    return zoo.get_loss(loss, **params)


def log_count(loss: str, batch_size: int) -> float:
    """What the number of negatives adds to the loss: sums over them stand in place of means."""
    if loss == "kcl":
        return 0.0
    if loss == "dhel":
        return 2 * math.log(batch_size - 1)
    return math.log(2 * batch_size - 1 - (loss == "dcl"))


def features(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views of samples in five clusters, in double precision."""
    draws = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, WIDTH, generator=draws, dtype=torch.float64)

    samples = normal(5)[torch.arange(count) % 5] + normal(count)
    z1, z2 = (samples + 0.5 * normal(count) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def gradients(loss_fn: zoo.Loss, z: tuple[Tensor, Tensor], batches: Iterator[Tensor]) -> Iterator[tuple[float, Tensor]]:
    """Value and gradient (2, N, D) of each batch, in the features of all samples."""
    for index in batches:
        value = loss_fn(z[0][index], z[1][index])
        yield value.item(), torch.stack(torch.autograd.grad(value, z))


def bias(run: Run) -> Result:
    """How far means over batches are from value and gradient of the whole: over all batches, and over random ones."""
    loss_fn = build(run["loss"], run["gamma"], BIAS_TEMPERATURE)
    exact, drawn = [], []
    z = features(run["few"], run["seed"])
    (value, whole), *_ = gradients(loss_fn, z, iter([torch.arange(run["few"])]))
    for size in few_sizes(run["few"]):
        batches = map(torch.tensor, itertools.combinations(range(run["few"]), size))
        found, mean = zip(*gradients(loss_fn, z, batches), strict=True)
        shift = log_count(run["loss"], run["few"]) - log_count(run["loss"], size)
        error = float((sum(mean) / len(mean) - whole).norm() / whole.norm())
        exact.append({"batch_size": size, "value": float(np.mean(found)) + shift - value, "gradient": error})
    z = features(MANY, run["seed"])
    (_, whole), *_ = gradients(loss_fn, z, iter([torch.arange(MANY)]))
    draws = torch.Generator().manual_seed(run["seed"])
    for size in MANY_SIZES:
        batches = (torch.randperm(MANY, generator=draws)[:size] for _ in range(run["drawn"]))
        lengths = np.array([float((part * whole).sum() / whole.square().sum()) for _, part in gradients(loss_fn, z, batches)])
        drawn.append({"batch_size": size, "length": lengths.mean(), "error": lengths.std(ddof=1) / math.sqrt(len(lengths))})
    return {"exact": exact, "drawn": drawn}


def train(run: Run) -> Result:
    """Figures of held-out projections and of the encoder, after training."""
    data = digits.load(run["samples"], run["samples"] // 4)
    loss_fn = build(run["loss"], run["gamma"], run["temperature"])
    model = digits.train(
        loss_fn,
        data,
        batch_size=run["batch_size"],
        epochs=run["epochs"],
        seed=run["seed"],
        make=lambda: digits.Model(HEADS[run["head"]]()),
    )
    rows = torch.nn.functional.normalize(digits.embed(model, data.held_out), dim=1)
    return {
        "effective_rank": zoo.metrics.effective_rank(rows),
        "wasserstein": zoo.metrics.wasserstein_uniformity(rows),
        **digits.accuracies(model, data),
    }


def do(run: Run) -> Result:
    return bias(run) if run["part"] == "bias" else train(run)


def runs(settings: Namespace) -> list[Run]:
    """The bias of every objective, and training with every head and temperature."""
    sizes = {"epochs": settings.epochs, "samples": settings.samples, "batch_size": settings.batch_size}
    made = []
    for seed in range(settings.seeds):
        for loss, gamma in KINDS:
            kind = {"loss": loss, "gamma": gamma, "seed": seed}
            made.append({"part": "bias", **kind, "few": settings.few, "drawn": settings.drawn})
            for head, temperature in itertools.product(HEADS, TEMPERATURES):
                made.append({"part": "training", **kind, "head": head, "temperature": temperature, **sizes})
    return made


def label(loss: str, gamma: float | None) -> str:
    return f"`{loss}`" + ("" if gamma is None else f", gamma {gamma:g}")


def biases(results: Sequence[Result], kind: tuple[str, float | None], part: str, key: str) -> np.ndarray[Any, Any]:
    """(seeds, batch sizes) of the runs of an objective."""
    chosen = [r for r in results if r["part"] == "bias" and (r["loss"], r["gamma"]) == kind]
    return np.array([[point[key] for point in result[part]] for result in chosen])


def sizes_found(results: Sequence[Result]) -> list[int]:
    return [point["batch_size"] for point in next(r for r in results if r["part"] == "bias")["exact"]]


def by_temperature(results: Sequence[Result], kind: tuple[str, float | None], head: str, figure: str) -> np.ndarray[Any, Any]:
    """(seeds, temperatures)."""
    where = {"part": "training", "loss": kind[0], "gamma": kind[1], "head": head}
    trained = [result for result in results if result["part"] == "training"]
    return np.stack([values(trained, figure, temperature=t, **where) for t in TEMPERATURES], axis=1)


def tables(results: Sequence[Result]) -> str:
    made = []
    for key, title in (("value", "value: mean over all batches less the whole"), ("gradient", "gradient: relative error")):
        rows = []
        for kind in KINDS:
            found = biases(results, kind, "exact", key)
            rows.append([label(*kind), *(f"{one.mean():.2g} ± {one.std(ddof=1):.1g}" for one in found.T)])
        made.append(table([title, *(f"batches of {size}" for size in sizes_found(results))], rows))
    rows = []
    for kind in KINDS:
        length, error = (biases(results, kind, "drawn", key) for key in ("length", "error"))
        # Standard error of the mean over seeds, from those of the single sets of features.
        errors = np.sqrt((error**2).sum(0)) / len(error)
        rows.append([label(*kind), *(f"{a:.3f} ± {b:.3f}" for a, b in zip(length.mean(0), errors, strict=True))])
    made.append(table(["random batches: gradient along that of the whole", *(f"batches of {s}" for s in MANY_SIZES)], rows))
    for head in HEADS:
        for figure, (title, places) in FIGURES.items():
            rows = []
            for kind in KINDS:
                found = by_temperature(results, kind, head, figure)
                rows.append([label(*kind), *(spread(one, places) for one in found.T)])
            made.append(table([f"{title}, {head} head", *(f"temperature {t:g}" for t in TEMPERATURES)], rows))
    return "\n".join(made)


def claims(results: Sequence[Result]) -> list[Claim]:
    """What the paper proves of expectations, and what it shows by experiments."""
    made = []
    for kind in KINDS:
        errors = biases(results, kind, "exact", "gradient")
        if kind[0] == "kcl":
            worst = float(errors.max())
            text = f"The mean gradient of {label(*kind)} over batches of any size is that of the whole."
            made.append(Claim(text, "holds" if worst < 1e-10 else "the opposite shows", f"largest relative error {worst:.1g}"))
        else:
            found = difference(errors[:, sizes_found(results).index(4)], np.zeros(len(errors)))
            text = f"The mean gradient of {label(*kind)} over batches depends on their size."
            made.append(Claim(text, found.verdict(), f"relative error {found} in batches of 4"))
    for head, kind in itertools.product(HEADS, KINDS[len(RIVALS) :]):
        made += comparisons(results, kind, head)
    return made


def comparisons(results: Sequence[Result], kind: tuple[str, float | None], head: str) -> list[Claim]:
    """An objective against the better of its rivals in each seed: rank, uniformity, best and worst accuracy."""
    start = f"{head} head: {label(*kind)}, against the better of `ntxent` and `dcl`,"
    wanted = (
        ("effective_rank", np.mean, 1, "has a higher effective rank, on average over temperatures"),
        ("wasserstein", np.mean, -1, "is nearer to uniformity, on average over temperatures"),
        ("linear_probe", np.max, 1, "is more accurate, each at its best temperature"),
        ("linear_probe", np.min, 1, "is more accurate, each at its worst temperature"),
    )
    made = []
    for figure, over, sign, text in wanted:
        own = sign * over(by_temperature(results, kind, head, figure), axis=1)
        rivals = [sign * over(by_temperature(results, (rival, None), head, figure), axis=1) for rival in RIVALS]
        found = difference(own, np.max(rivals, axis=0))
        made.append(Claim(f"{start} {text}.", found.verdict(), f"{found} ({FIGURES[figure][0]})"))
    return made


def draw(results: Sequence[Result], path: Path) -> None:
    """Bias by batch size above; rank, uniformity and accuracy by temperature below, a row for each head."""
    sizes = sizes_found(results)
    with picture(path, 11, 9) as figure:
        top, *rows = figure.subplots(1 + len(HEADS), 3)
        for kind in KINDS:
            style = {
                "color": COLOURS[kind[0]],
                "linestyle": ":" if kind == KINDS[-1] else "-",
                "label": label(*kind).replace("`", ""),
            }
            bars(top[0], sizes, biases(results, kind, "exact", "value"), style)
            bars(top[1], sizes, biases(results, kind, "exact", "gradient"), style)
            bars(top[2], MANY_SIZES, biases(results, kind, "drawn", "length"), style)
            for head, row in zip(HEADS, rows, strict=True):
                for axes, (key, (title, _)) in zip(row, FIGURES.items(), strict=True):
                    bars(axes, TEMPERATURES, by_temperature(results, kind, head, key), style)
                    axes.set(title=f"{title}, {head} head", xlabel="temperature", xscale="log")
                    axes.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
                    axes.minorticks_off()
        top[0].set(title="value: mean over all batches less the whole")
        top[1].set(title="gradient: relative error of this mean")
        top[2].set(title="random batches: length of the gradient", xscale="log")
        for axes, ticks in zip(top, (sizes, sizes, MANY_SIZES), strict=True):
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel("batch size")
        figure.legend(*top[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS), frameon=False)


def bars(axes: Any, x: Sequence[float], found: np.ndarray[Any, Any], style: dict[str, Any]) -> None:
    """Means over seeds with their standard deviations."""
    axes.errorbar(x, found.mean(0), yerr=found.std(0, ddof=1), marker="o", markersize=4, capsize=2, **style)


def main(given: Sequence[str] | None = None) -> list[Result]:
    parser = arguments(NAME, __doc__)
    parser.add_argument("--epochs", type=int, default=4, help="passes over the samples")
    settings = parser.parse_args(given)
    settings.samples, settings.batch_size, settings.few, settings.drawn = 4_000, BATCH, FEW, DRAWN
    if settings.quick:
        settings.samples, settings.batch_size, settings.epochs, settings.seeds = 64, 32, 1, 2
        settings.few, settings.drawn = 6, 3

    def seconds(run: Run) -> float:
        if run["part"] == "bias":
            return 3.0
        return run["epochs"] * run["samples"] * digits.seconds_per_sample(run["batch_size"])

    results = carry_out(runs(settings), do, seconds, settings)
    draw(results, settings.output / f"{NAME}.svg")
    write(NAME, settings, results, tables(results), claims(results))
    return results


if __name__ == "__main__":
    main()
