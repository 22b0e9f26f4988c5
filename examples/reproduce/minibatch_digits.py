"""Does it pay to choose batches? Handwritten digits, a small ResNet, batches of 32, every batch sampler for the same steps.

    python examples/reproduce/minibatch_digits.py                        # three seeds: half an hour on one core
    python examples/reproduce/minibatch_digits.py --quick

After Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906

Measured by step and by second of the processor, the selection and the features for it included: the loss of all training images
as one batch, and how many held-out images find their own augmented view among those of all others, as they are and with noise.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import contrastive_zoo as zoo

sys.path.insert(0, str(Path(__file__).parents[1]))
from images import Images, Source, load_images
from model import build_encoder, build_head

SELECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "shuffle": ({}, "#8a8a8a"),
    "fixed": ({}, "#b03030"),
    "ordered": ({"k": 4, "q": 2}, "#3465a4"),
    "spectral": ({}, "#e07b39"),
    "bisection": ({"k": 10}, "#3d7a2a"),
}
FIGURES = {
    "loss": "loss of all training images as one batch",
    "clean": "held-out images that find their view, %",
    "corrupted": "the same with noisy images, %",
}
NOISE = 0.5
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"}
# Text stays text, and ids do not change from run to run.
SVG = {"svg.fonttype": "none", "svg.hashsalt": "minibatch_digits"}
CPU = torch.device("cpu")


class Model(nn.Module):
    """Backbone and projection head."""

    def __init__(self, settings: argparse.Namespace, images: Images) -> None:
        super().__init__()
        self.encoder = build_encoder(settings.backbone, images)
        self.head = build_head(self.encoder, images, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Projections (B, 128)."""
        return self.head(self.encoder(x))


def two_views(images: Images, item: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Both views and the index of what a loader over indexed images returns."""
    return *images.two_views(item[0], CPU), item[-1]


def encode(model: Model, images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Features of two views of all training images."""
    loader = DataLoader(zoo.IndexedDataset(images.pairs), batch_size=256)
    return zoo.batch_samplers.encode(model, loader, views=lambda item: two_views(images, item))


@torch.no_grad()
def evaluate(model: Model, images: Images, temperature: float) -> dict[str, float]:
    """All `FIGURES`, on the same views every time; leaves no trace in the random state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z1, z2, _ = encode(model, images)
        plain = torch.stack([image for image, _ in images.held_out])
        inputs = {"view": images.two_views(plain, CPU)[0], "clean": plain, "corrupted": plain + NOISE * torch.randn_like(plain)}
    model.eval()
    z = {name: model(x) for name, x in inputs.items()}
    found = {
        name: 100 * zoo.metrics.retrieval_accuracy(z[name], z["view"], k=(1,)).z1_to_z2[1] for name in ("clean", "corrupted")
    }
    return {"loss": float(zoo.functional.infonce(z1, z2, temperature=temperature)), **found}


def batches(sampler: zoo.batch_samplers.BatchSampler, model: Model, images: Images) -> Iterator[Any]:
    """Batches of one epoch after another, chosen by new features before each."""
    while True:
        if sampler.needs_features:
            sampler.refresh(*encode(model, images))
        yield from DataLoader(zoo.IndexedDataset(images.pairs), batch_sampler=sampler)


def train(name: str, seed: int, images: Images, settings: argparse.Namespace) -> list[dict[str, float]]:
    """Figures from before training to its end, with the step and the seconds of training up to there."""
    params = SELECTIONS[name][0] | ({"temperature": settings.temperature} if name in ("spectral", "bisection") else {})
    loss_fn = zoo.get_loss("infonce", temperature=settings.temperature)
    if name == "ordered":
        params = {**params, "loss": loss_fn}
    torch.manual_seed(seed)
    model = Model(settings, images)
    sampler = zoo.get_batch_sampler(name, num_samples=len(images.train), batch_size=settings.batch_size, seed=seed, **params)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / settings.steps)))
    found, seconds = [{"step": 0, "seconds": 0.0, **evaluate(model, images, settings.temperature)}], 0.0
    stream = batches(sampler, model, images)
    for step in tqdm(range(1, settings.steps + 1), desc=f"{name}, seed {seed}"):
        started = time.process_time()
        x1, x2, index = two_views(images, next(stream))
        z1, z2 = model.train()(torch.cat([x1, x2])).chunk(2)
        optimizer.zero_grad()
        loss_fn(z1, z2, index=index).backward()
        optimizer.step()
        schedule.step()
        seconds += time.process_time() - started
        if step % settings.every == 0 or step == settings.steps:
            found.append({"step": step, "seconds": seconds, **evaluate(model, images, settings.temperature)})
    return found


def plot(runs: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """A row by step and one by second; lines are means over seeds, bands reach from the least to the largest."""
    with rc_context({**STYLE, **SVG}):
        figure = Figure(figsize=(12, 6.4), layout="constrained")
        for row, unit in zip(figure.subplots(2, len(FIGURES)), ("step", "seconds"), strict=True):
            for axes, (key, title) in zip(row, FIGURES.items(), strict=True):
                for name, seeds in runs.items():
                    draw(axes, seeds, unit, key, name)
                axes.set(xlabel=unit, title=title if unit == "step" else "")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def draw(axes: Axes, seeds: list[list[dict[str, float]]], unit: str, key: str, name: str) -> None:
    colour = SELECTIONS[name][1]
    x = np.mean([[point[unit] for point in run] for run in seeds], axis=0)
    y = np.array([[point[key] for point in run] for run in seeds])
    axes.plot(x[1:], y.mean(0)[1:], color=colour, label=name, linewidth=1.8)
    axes.fill_between(x[1:], y.min(0)[1:], y.max(0)[1:], color=colour, alpha=0.12, linewidth=0)


def table(runs: dict[str, list[list[dict[str, float]]]]) -> str:
    """The last figures of each selection as Markdown: mean over seeds, and the standard deviation."""
    lines = ["| batches | loss of all pairs | retrieval, % | with noise, % | seconds |", "|---|---|---|---|---|"]
    for name, seeds in runs.items():
        last = {key: np.array([run[-1][key] for run in seeds]) for key in (*FIGURES, "seconds")}
        loss = f"{last['loss'].mean():.4f} ± {last['loss'].std():.4f}"
        found = [f"{last[key].mean():.1f} ± {last[key].std():.1f}" for key in ("clean", "corrupted")]
        lines.append(f"| `{name}` | {loss} | {found[0]} | {found[1]} | {last['seconds'].mean():.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, list[list[dict[str, float]]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet10t", help="any of timm.list_models() (default: resnet10t)")
    parser.add_argument("--steps", type=int, default=440, help="batches that each selection trains on (default: 440)")
    parser.add_argument("--every", type=int, default=44, help="steps from one evaluation to the next (default: 44)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a batch (default: 32)")
    parser.add_argument("--temperature", type=float, default=0.5, help="of the loss and of the selection (default: 0.5)")
    parser.add_argument("--lr", type=float, default=1e-3, help="first learning rate of AdamW (default: 0.001)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each selection (default: 3)")
    parser.add_argument("--output", default="runs/minibatch_digits", help="folder for the picture and the figures")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few images, to see that everything works")
    settings = parser.parse_args(argv)
    images = load_images(Source())
    if settings.quick:
        images = images.first(96, 48)
        settings.steps, settings.every, settings.seeds, settings.batch_size = 6, 3, 1, 8
    torch.set_num_threads(1)  # so that seconds of the processor are seconds
    runs = {name: [train(name, seed, images, settings) for seed in range(settings.seeds)] for name in SELECTIONS}
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    plot(runs, folder / "minibatch_digits.svg")
    (folder / "minibatch_digits.json").write_text(json.dumps({"settings": vars(settings), "runs": runs}))
    print(table(runs))
    return runs


if __name__ == "__main__":
    main()
