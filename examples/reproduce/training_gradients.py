"""How far gradients of batches of 4 are from the exact global one while an encoder trains, for five objectives.

    python examples/reproduce/training_gradients.py            # a few minutes on two cores
    python examples/reproduce/training_gradients.py --quick

After Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024.
arXiv:2404.10575

A hundred cluttered digits have two fixed views each, so the loss over all of them and its gradient are exact. One objective
trains a small encoder; if that is emc2, the others watch: they see the same batches and the same features, and keep their own
tables. At some epochs training pauses: every objective gives its gradients for one more epoch of batches, many times, each time
in another order and from the tables that it has at that moment. Two errors are measured in all parameters of the encoder,
relative to the length of the exact gradient: of the mean of these gradients (bias), and of a single one (root mean square).
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import digits
import numpy as np
import torch
from experiment import (
    COLOURS,
    Claim,
    Result,
    Run,
    arguments,
    carry_out,
    difference,
    picture,
    seconds_per_step,
    spread,
    table,
    values,
    write,
)
from matplotlib.axes import Axes
from torch import Tensor, nn

import contrastive_zoo as zoo

NAME = "training_gradients"
BATCH_SIZE = 4
# The inverse of the temperature: the authors' for this experiment, and for their others.
BETAS = (5.0, 14.28)
LR = 3e-4
# Label: name, parameters, and whether samples outside of the batch are encoded again, as the authors of emc2 do.
WATCHERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "ntxent": ("ntxent", {}, False),
    "dcl": ("dcl", {}, False),
    "sogclr, gamma 0.9": ("sogclr", {"gamma": 0.9}, False),
    "sogclr, gamma 0.1": ("sogclr", {"gamma": 0.1}, False),
    "negative_cache": ("negative_cache", {}, False),
    "negative_cache, encode": ("negative_cache", {}, True),
    "emc2": ("emc2", {}, False),
    "emc2, encode": ("emc2", {"out_of_batch": "encode"}, True),
}
TRAINERS = ("ntxent", "sogclr, gamma 0.9", "negative_cache, encode", "emc2, encode")
EMC2 = "emc2, encode"


class Encoder(nn.Module):
    """A convolutional network in which no image depends on the others of its batch, so that the exact gradient is defined.

    Args:
        images: (N, 3, 16, 16). Their projections are centred and scaled before training, by constants from then on: otherwise
            all begin in one place, where there is no gradient to speak of.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *block(3, 16, stride=1),
            *block(16, 32, stride=2),
            *block(32, 64, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 64),
            nn.LayerNorm(64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.BatchNorm1d(32, affine=False, momentum=None),
        )
        with torch.no_grad():
            self.layers(images)
        self.eval()

    def forward(self, views: Tensor) -> Tensor:
        """Projections (2, B, 32) of both views (B, 2, 3, 16, 16) of some samples."""
        return self.layers(views.transpose(0, 1).flatten(0, 1)).unflatten(0, (2, -1))


def block(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    """A convolution, normalised within each image."""
    return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(4, after), nn.ReLU()


class Watcher:
    """An objective with its tables.

    Args:
        label: One of `WATCHERS`.
        encoder: Encoder.
        views: (N, 2, 3, 16, 16), both views of all samples.
        beta: One over the temperature.
        seed: Seed.
    """

    def __init__(self, label: str, encoder: Encoder, views: Tensor, beta: float, seed: int) -> None:
        name, params, encodes = WATCHERS[label]
        again = {"encode": self.encode} if encodes else {}
        self.loss_fn = zoo.get_loss(name, num_samples=len(views), temperature=1 / beta, seed=seed, **params, **again)
        self.stateful = zoo.describe_loss(name).stateful
        self.encoder, self.views = encoder, views
        self.features: Tensor | None = None

    def encode(self, index: Tensor, view: Tensor) -> Tensor:
        """Projections of samples outside of the batch."""
        return self.encoder.layers(self.views[index, view]) if self.features is None else self.features[view, index]

    def gradients(self, features: Tensor, orders: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gradients in the features (2, N, D) of the batches of epochs in given orders, each from the tables as they are."""
        state = {key: value.clone() for key, value in self.loss_fn.state_dict().items()}
        for number, order in enumerate(orders):
            # Other draws in every epoch.
            moved = {
                key: value + 10_000 * number if key.endswith("step._extra_state") else value for key, value in state.items()
            }
            self.loss_fn.load_state_dict(moved)
            for index in order.split(BATCH_SIZE):
                self.features = features.detach().requires_grad_()
                yield torch.autograd.grad(self.loss_fn(*self.features[:, index], index=index), self.features)[0]
        self.features = None
        self.loss_fn.load_state_dict(state)


def measure(
    encoder: Encoder, views: Tensor, watchers: dict[str, Watcher], beta: float, repeat: int, draws: torch.Generator
) -> Result:
    """Both errors of every watcher and the noise in the first, the global loss and the length of its gradient."""
    features = encoder(views)

    def in_parameters(gradient: Tensor) -> Tensor:
        pieces = torch.autograd.grad(features, list(encoder.parameters()), gradient, retain_graph=True)
        return torch.cat([piece.flatten() for piece in pieces])

    # dcl with the whole set as one batch has the gradient of the global loss.
    leaf = features.detach().requires_grad_()
    exact = in_parameters(torch.autograd.grad(zoo.functional.dcl(*leaf, temperature=1 / beta), leaf)[0])
    length = float(exact.norm())
    loss = zoo.metrics.global_contrastive_loss(*features.detach(), temperature=1 / beta)
    found: Result = {"global loss": loss, "length": length}
    orders = [torch.randperm(len(views), generator=draws) for _ in range(2 * repeat)]
    for label, watcher in watchers.items():
        every = torch.stack(list(watcher.gradients(features, orders)))
        means = [in_parameters(half.mean(0)) for half in every.chunk(2)]
        # Of the last epoch, single gradients too.
        steps = [in_parameters(gradient) - exact for gradient in every[-(len(views) // BATCH_SIZE) :]]
        # The noise of one half is not that of the other: their product has none on average.
        product = float(torch.dot(means[0] - exact, means[1] - exact))
        found[f"bias of {label}"] = math.sqrt(max(0.0, product)) / length
        found[f"noise of {label}"] = float((means[0] - means[1]).norm()) / 2 / length
        found[f"step of {label}"] = float(torch.stack(steps).square().sum(1).mean().sqrt()) / length
    return found


def train(run: Run) -> Result:
    """What `measure` finds at each checkpoint, as lists; all objectives watch the training by emc2."""
    images = digits.load(run["samples"], 10).images
    views = digits.plain(images.flatten(0, 1)).contiguous().unflatten(0, (-1, 2))
    torch.manual_seed(run["seed"])
    encoder = Encoder(views.flatten(0, 1))
    labels = WATCHERS if run["trainer"] == EMC2 else (run["trainer"],)
    watchers = {label: Watcher(label, encoder, views, run["beta"], run["seed"]) for label in labels}
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LR)
    draws, other_draws = (torch.Generator().manual_seed(run["seed"] + number) for number in (0, 1_000))
    found = []
    for epoch in range(1, run["checkpoints"][-1] + 1):
        for index in digits.shuffled(run["samples"], BATCH_SIZE, draws):
            z = encoder(views[index])
            with torch.no_grad():
                for label, watcher in watchers.items():
                    if watcher.stateful and label != run["trainer"]:
                        watcher.loss_fn(*z, index=index)
            optimizer.zero_grad()
            watchers[run["trainer"]].loss_fn(*z, index=index).backward()
            optimizer.step()
        if epoch in run["checkpoints"]:
            found.append(measure(encoder, views, watchers, run["beta"], run["repeat"], other_draws))
    return {key: [one[key] for one in found] for key in found[0]}


@cache
def seconds_per_epoch(samples: int) -> float:
    """How long an epoch takes; those of a checkpoint take about as long as those of training."""
    run = {"trainer": EMC2, "beta": BETAS[0], "samples": samples, "checkpoints": [1], "repeat": 1, "seed": 0}
    return seconds_per_step(lambda: train(run), times=1) / 3


def seconds(run: Run) -> float:
    """How long a run takes; without watchers, about a sixth."""
    epochs = run["checkpoints"][-1] + 2 * run["repeat"] * len(run["checkpoints"])
    return epochs * seconds_per_epoch(run["samples"]) / (1 if run["trainer"] == EMC2 else 6)


def runs(settings: argparse.Namespace) -> list[Run]:
    """Every trainer with every beta and seed."""
    shared = {"samples": settings.samples, "checkpoints": settings.checkpoints, "repeat": settings.repeat}
    return [
        {"trainer": trainer, "beta": beta, **shared, "seed": seed}
        for seed in range(settings.seeds)
        for beta in BETAS
        for trainer in TRAINERS
    ]


def tables(results: Sequence[Result], epochs: Sequence[int]) -> str:
    """For each beta, errors along the training by emc2, and where each trainer leads."""
    made = []
    for beta in BETAS:
        for kind, title in (("bias", "error of the mean gradient"), ("step", "error of one gradient")):
            rows = []
            for label in WATCHERS:
                found = values(results, f"{kind} of {label}", trainer=EMC2, beta=beta)
                noise = values(results, f"noise of {label}", trainer=EMC2, beta=beta)
                rows.append([label, *map(spread, found.T), *([f"{noise.mean():.3f}"] if kind == "bias" else [])])
            columns = [f"beta {beta:g}: {title}", *(f"epoch {epoch}" for epoch in epochs)]
            made.append(table([*columns, "noise in it"] if kind == "bias" else columns, rows))
        rows = [[trainer, *map(spread, values(results, "global loss", trainer=trainer, beta=beta).T)] for trainer in TRAINERS]
        made.append(table([f"beta {beta:g}: global loss, trained by", *(f"epoch {epoch}" for epoch in epochs)], rows))
    return "\n".join(made)


def claims(results: Sequence[Result], beta: float) -> list[Claim]:
    """What the paper says about emc2 and those it is compared with, at the last checkpoint."""

    def last(figure: str, trainer: str = EMC2) -> np.ndarray[Any, Any]:
        return values(results, figure, trainer=trainer, beta=beta)[:, -1]

    made = []
    for label in ("ntxent", "sogclr, gamma 0.9", "negative_cache"):
        for kind, title in (("bias", "the mean gradient"), ("step", "a single gradient")):
            found = difference(last(f"{kind} of {label}"), last(f"{kind} of {EMC2}"))
            text = f"beta {beta:g}: {title} of `emc2` with `encode` is nearer to the exact one than that of {label}."
            made.append(Claim(text, found.verdict(), f"error of {label} less that of `emc2`: {found}"))
    for trainer in TRAINERS[:-1]:
        found = difference(last("global loss", trainer), last("global loss"))
        text = f"beta {beta:g}: training by `emc2` with `encode` ends at a lower global loss than by {trainer}."
        made.append(Claim(text, found.verdict(), f"{trainer} less `emc2`: {found}"))
    return made


def draw(results: Sequence[Result], epochs: Sequence[int], path: Path) -> None:
    """For each beta, errors along the training by emc2, and the global loss of each trainer; bands are standard deviations."""
    with picture(path, 12, 6.6) as figure:
        for row, beta in zip(figure.subplots(len(BETAS), 3, sharex=True), BETAS, strict=True):
            for axes, kind in zip(row, ("bias", "step", "loss"), strict=True):
                for label in TRAINERS if kind == "loss" else WATCHERS:
                    figure_name = "global loss" if kind == "loss" else f"{kind} of {label}"
                    found = values(results, figure_name, trainer=label if kind == "loss" else EMC2, beta=beta)
                    curve(axes, epochs, found, label)
                axes.set_xlabel("epoch")
            row[0].set_yscale("symlog", linthresh=0.1)  # a bias can be 0 within its noise
            row[0].set_ylim(bottom=0)
            row[1].set_yscale("log")
            row[0].set(title=f"beta {beta:g}: error of the mean gradient", ylabel="relative to the exact gradient")
            row[1].set(title="Error of a single gradient")
            row[2].set(title="Global loss, by the objective that trains")
        figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def curve(axes: Axes, epochs: Sequence[int], found: np.ndarray[Any, Any], label: str) -> None:
    """The mean over seeds, dashed for variants."""
    mean, deviation = found.mean(0), found.std(0, ddof=min(1, len(found) - 1))
    colour = COLOURS[WATCHERS[label][0]]
    style = "--" if "encode" in label or "0.1" in label else "-"
    axes.plot(epochs, mean, color=colour, linestyle=style, marker="o", markersize=3, label=label)
    axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)


def main(given: Sequence[str] | None = None) -> list[Result]:
    settings = arguments(NAME, __doc__).parse_args(given)
    settings.samples, settings.checkpoints, settings.repeat = 100, [1, 5, 20], 3
    if settings.quick:
        settings.samples, settings.checkpoints, settings.repeat, settings.seeds = 12, [1, 2], 1, 2
    results = carry_out(runs(settings), train, seconds, settings)
    draw(results, settings.checkpoints, settings.output / f"{NAME}.svg")
    judged = [claim for beta in BETAS for claim in claims(results, beta)]
    write(NAME, settings, results, tables(results, settings.checkpoints), judged)
    return results


if __name__ == "__main__":
    main()
