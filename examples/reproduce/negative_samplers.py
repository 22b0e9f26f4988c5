"""Where negative samplers put their weight, by similarity, beside the softmax over the whole dataset.

    python examples/reproduce/negative_samplers.py                       # half a minute on one core; negative_samplers.svg
    python examples/reproduce/negative_samplers.py --output docs/images  # the picture in the documentation
    python examples/reproduce/negative_samplers.py --quick

A fixed set of features stands for a dataset. Each sampler sees it in small batches; the weights of its negatives are summed by
similarity to their anchor.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from experiment import picture
from torch import Tensor
from torch.nn import functional as F

import contrastive_zoo as zoo

BATCH_SIZE, TEMPERATURE, CLUSTERS, WIDTH, BINS = 16, 0.1, 8, 16, 40
SAMPLERS: dict[str, dict[str, int]] = {
    "uniform": {"num_negatives": 64},
    "topk": {"num_negatives": 16},
    "gumbel": {"num_negatives": 16},
    "mcmc": {},
    "queue": {"num_negatives": 256},
}
COLOURS = dict(zip(["batch", *SAMPLERS], ("#8a8a8a", "#4a86cf", "#e0662b", "#3f9142", "#c9a227", "#a05fb4"), strict=True))


def features(size: int) -> Tensor:
    """(N, 2, D) unit rows: two views of samples in clusters."""
    draws = torch.Generator().manual_seed(0)
    samples = 1.2 * torch.randn(CLUSTERS, WIDTH, generator=draws).repeat(size // CLUSTERS, 1)
    samples = samples + torch.randn(size, WIDTH, generator=draws)
    return F.normalize(samples[:, None] + 0.5 * torch.randn(size, 2, WIDTH, generator=draws), dim=2)


def histogram(similarity: Tensor, weights: Tensor) -> Tensor:
    """(BINS,) share of the weight in each interval of similarity between -1 and 1."""
    place = ((similarity + 1) / 2 * BINS).long().clamp(0, BINS - 1)
    total = torch.zeros(BINS).index_add_(0, place.flatten(), weights.flatten())
    return total / total.sum()


def softmax_of(rows: Tensor, keys: Tensor, owner: Tensor, key_owner: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities to all keys, and the softmax over those of other samples."""
    similarity = rows @ keys.T
    logits = (similarity / TEMPERATURE).masked_fill(owner[:, None] == key_owner, -torch.inf)
    return similarity, logits.softmax(1)


def batches(size: int, epochs: int) -> Iterator[tuple[int, Tensor]]:
    """Epoch and samples of each batch, in a new order every epoch."""
    draws = torch.Generator().manual_seed(1)
    for epoch in range(epochs):
        for index in torch.randperm(size, generator=draws).split(BATCH_SIZE):
            yield epoch, index


def measure(name: str, views: Tensor, epochs: int) -> Tensor:
    """Shares of the weight of a sampler, after a first third of the epochs that fills its tables."""
    table, found = views.flatten(0, 1), []
    sampler = None if name == "batch" else zoo.get_sampler(name, num_samples=len(views), **SAMPLERS[name])
    for epoch, index in batches(len(views), epochs):
        rows, owner = views[index].flatten(0, 1), index.repeat_interleave(2)
        if sampler is None:
            pairs = softmax_of(rows, rows, owner, owner)
        else:
            drawn = sampler(*views[index].unbind(1), index=index, temperature=TEMPERATURE)
            pairs = (rows[:, None] * table[drawn.rows]).sum(2), drawn.weights
        if epoch >= epochs // 3:
            found.append(histogram(*pairs))
    return torch.stack(found).mean(0)


def measure_all(size: int, epochs: int) -> dict[str, list[float]]:
    """Shares of each sampler, of the batch alone, and of the exact softmax."""
    views = features(size)
    owner = torch.arange(size).repeat_interleave(2)
    exact = histogram(*softmax_of(views.flatten(0, 1), views.flatten(0, 1), owner, owner))
    shares = {name: measure(name, views, epochs) for name in COLOURS}
    return {"exact": exact.tolist(), **{name: share.tolist() for name, share in shares.items()}}


def distances(shares: dict[str, list[float]]) -> dict[str, float]:
    """Total variation between the shares of each sampler and the exact ones."""
    exact = torch.tensor(shares["exact"])
    return {name: float((torch.tensor(share) - exact).abs().sum() / 2) for name, share in shares.items() if name != "exact"}


def draw(shares: dict[str, list[float]], path: Path) -> None:
    """A curve for each sampler over the area of the exact softmax."""
    centres = (torch.arange(BINS) + 0.5) / BINS * 2 - 1
    with picture(path, 8, 4.4) as figure:
        axes = figure.subplots()
        axes.fill_between(
            centres, shares["exact"], step="mid", color="#8a8a8a", alpha=0.35, linewidth=0, label="softmax over the dataset"
        )
        for name, colour in COLOURS.items():
            axes.step(centres, shares[name], where="mid", color=colour, linewidth=1.8, label=name)
        axes.set(xlabel="similarity of the negative to its anchor", ylabel="share of the weight", xlim=(-0.6, 1), ylim=0)
        axes.legend(frameon=False, loc="upper left")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/negative_samplers"), help="folder of picture and numbers")
    parser.add_argument("--quick", action="store_true", help="a small set, to see that it works")
    settings = parser.parse_args(arguments)
    shares = measure_all(*((64, 6) if settings.quick else (512, 30)))
    settings.output.mkdir(parents=True, exist_ok=True)
    draw(shares, settings.output / "negative_samplers.svg")
    found = distances(shares)
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
