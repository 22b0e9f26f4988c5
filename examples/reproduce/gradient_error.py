"""How near the gradients of the global objectives come to the exact one, and what batch size and settings do to that.

    python examples/reproduce/gradient_error.py                       # a few minutes on one core; gradient_error.svg
    python examples/reproduce/gradient_error.py --output docs/images  # the picture in the documentation
    python examples/reproduce/gradient_error.py --quick

A fixed set of features stands for a dataset. Each objective sees it in small batches; its mean gradient is compared with that
of the loss over the whole set, in direction (cosine) and length.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import picture
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

import contrastive_zoo as zoo

BATCH_SIZE, TEMPERATURE, CLUSTERS, WIDTH = 8, 0.1, 8, 8
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ntxent": ("ntxent", {}),
    "dcl": ("dcl", {}),
    "sogclr": ("sogclr", {"gamma": 0.1}),
    "emc2": ("emc2", {}),
    "emc2, encode": ("emc2", {"out_of_batch": "encode"}),
    "negative_cache": ("negative_cache", {}),
    "negative_cache, encode": ("negative_cache", {}),
}
COLOURS = dict(zip(METHODS, ("#8a8a8a", "#444444", "#3465a4", "#e07b39", "#b5531c", "#7fb069", "#3d7a2a"), strict=True))

Point = tuple[float, float]
Curves = dict[str, list[tuple[float, float, float]]]


def features(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views of samples in clusters, that want a gradient."""
    draws = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(CLUSTERS, WIDTH, generator=draws).repeat(size // CLUSTERS, 1)
    samples = centres + torch.randn(size, WIDTH, generator=draws)
    z1, z2 = (samples + 0.5 * torch.randn(size, WIDTH, generator=draws) for _ in range(2))
    return z1.requires_grad_(), z2.requires_grad_()


def measure(method: str, settings: argparse.Namespace, batch_size: int, temperature: float, **params: Any) -> Point:
    """Cosine and relative length, averaged over feature sets."""
    name, defaults = METHODS[method]
    found = []
    for seed in range(settings.seeds):
        z = features(settings.samples, seed)
        extra = {"encode": lambda index, view, z=z: torch.stack(z)[view, index]} if method.endswith("encode") else {}
        loss_fn = zoo.get_loss(
            name, num_samples=settings.samples, temperature=temperature, seed=0, **{**defaults, **extra, **params}
        )
        error = zoo.metrics.gradient_error(
            loss_fn, *z, batch_size=batch_size, epochs=settings.epochs, warmup=max(1, settings.epochs // 3)
        )
        found.append(error)
    cosine, length = np.mean(found, axis=0)
    return float(cosine), float(length)


def sweep(
    title: str, methods: Sequence[str], values: Sequence[float], point: Callable[[str, float], Point], quick: bool
) -> Curves:
    """(value, cosine, length) for each method along one axis."""
    values = values[:: len(values) - 1] if quick else values
    jobs = [(method, value) for method in methods for value in values]
    curves: Curves = {method: [] for method in methods}
    for method, value in tqdm(jobs, desc=title):
        curves[method].append((value, *point(method, value)))
    return curves


def measure_all(settings: argparse.Namespace) -> dict[str, Curves]:
    """The four sweeps of the picture, by the labels of their axes."""
    chains = [method for method in METHODS if method.startswith("emc2")]
    sweeps: dict[str, tuple[Sequence[str], Sequence[float], Callable[[str, float], Point]]] = {
        "batch size": (list(METHODS), (4, 8, 16, 32), lambda m, v: measure(m, settings, int(v), TEMPERATURE)),
        "temperature": (list(METHODS), (0.05, 0.1, 0.2, 0.5, 1.0), lambda m, v: measure(m, settings, BATCH_SIZE, v)),
        "gamma of sogclr": (
            ["sogclr"],
            (0.03, 0.1, 0.3, 0.6, 0.9),
            lambda m, v: measure(m, settings, BATCH_SIZE, TEMPERATURE, gamma=v),
        ),
        "burn_in of emc2": (
            chains,
            (0.0, 0.25, 0.5, 0.75, 0.9),
            lambda m, v: measure(m, settings, BATCH_SIZE, TEMPERATURE, burn_in=v),
        ),
    }
    return {title: sweep(title, *parts, settings.quick) for title, parts in sweeps.items()}


def draw(results: dict[str, Curves], path: Path) -> None:
    """Cosines above, lengths below, a column for each sweep."""
    with picture(path, 12, 5.4) as figure:
        grid = figure.subplots(2, len(results), sharex="col", sharey="row")
        for (title, curves), (above, below) in zip(results.items(), grid.T, strict=True):
            _column(above, below, title, curves)
        grid[0, 0].set_ylabel("cosine with the exact gradient")
        grid[1, 0].set_ylabel("length over that of the exact one")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _column(above: Axes, below: Axes, title: str, curves: Curves) -> None:
    for method, points in curves.items():
        value, cosine, length = np.transpose(points)
        style = {"color": COLOURS[method], "marker": "o", "markersize": 4, "linestyle": "--" if "encode" in method else "-"}
        above.plot(value, cosine, label=method, **style)
        below.plot(value, length, **style)
    below.axhline(1, color="black", linewidth=0.8)
    below.set_xlabel(title)
    if title in ("batch size", "temperature", "gamma of sogclr"):
        below.set_xscale("log")
        below.set_xticks([value for value, *_ in next(iter(curves.values()))])
        below.xaxis.set_major_formatter("{x:g}")
        below.minorticks_off()


def main(arguments: Sequence[str] | None = None) -> dict[str, Curves]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gradient_error"), help="folder for the picture and its numbers"
    )
    parser.add_argument("--samples", type=int, default=96, help=f"samples of the feature set, a multiple of {CLUSTERS}")
    parser.add_argument("--epochs", type=int, default=60, help="epochs averaged over, after a third as many to warm up")
    parser.add_argument("--seeds", type=int, default=3, help="feature sets averaged over")
    parser.add_argument("--quick", action="store_true", help="two points of each curve from one epoch, to see that it works")
    settings = parser.parse_args(arguments)
    if settings.samples < 32 or settings.samples % CLUSTERS:
        parser.error(f"--samples {settings.samples}: a multiple of {CLUSTERS} from 32 on is wanted.")
    if settings.quick:
        settings.samples, settings.epochs, settings.seeds = 32, 1, 1
    results = measure_all(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    draw(results, settings.output / "gradient_error.svg")
    (settings.output / "gradient_error.json").write_text(json.dumps(results, indent=1))
    print(f"drawn to {settings.output / 'gradient_error.svg'}")
    return results


if __name__ == "__main__":
    main()
