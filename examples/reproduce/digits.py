"""Cluttered digits, small enough for experiments of many runs: a quick encoder, cheap views, one loop, an evaluation.

Against those of `examples/cluttered_digits.py`, the images have half the size and faint backgrounds, which differ between the
two renderings of a sample: so an encoder of 1.5 million multiplications an image learns to tell digits within minutes.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import contrastive_zoo as zoo

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluttered_digits import Part, cluttered_digits

WIDTH, DIM = 128, 64
CLUTTER = 0.3
LR = 3e-3
SHIFT, COLOUR = 1, 0.3


class Digits(NamedTuple):
    """Training and held-out samples of disjoint digits.

    Attributes:
        images: (N, 2, 3, 16, 16), two renderings of each training sample, uint8.
        labels: (N,).
        held_out: (M, 3, 16, 16), one rendering of each held-out sample, uint8.
        held_out_labels: (M,).
    """

    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


@cache
def load(train: int = 4_000, held_out: int = 1_000) -> Digits:
    """The same samples in every run."""
    made = cluttered_digits(clutter=CLUTTER, same_background=0.0, train=train, held_out=held_out)
    (images, labels), (others, other_labels) = ((_half(part), torch.from_numpy(part.labels)) for part in made)
    return Digits(images, labels, others[:, 0], other_labels)


def _half(part: Part) -> Tensor:
    """Both renderings at half the size."""
    images = torch.from_numpy(part.images)
    return F.avg_pool2d(images.flatten(0, 1).float(), 2).round().byte().unflatten(0, (-1, 2))


class Model(nn.Module):
    """A convolutional encoder and a projection head."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *block(3, 16, stride=1),
            *block(16, 32, stride=2),
            *block(32, 64, stride=2),
            *block(64, WIDTH, stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = normalised_head() if head is None else head
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Projections (B, 64) of images (B, 3, 16, 16)."""
        return self.head(self.encoder(x))


def normalised_head() -> nn.Module:
    """A head that begins with spread projections: without its last layer they begin in one place, and 150 steps stay there."""
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH, bias=False),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, DIM, bias=False),
        nn.BatchNorm1d(DIM, affine=False),
    )


def usual_head() -> nn.Module:
    """A head as in the papers, whose projections nothing keeps apart but the objective."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, DIM))


def block(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    """A convolution with its normalisation."""
    return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def plain(images: Tensor) -> Tensor:
    """Images as they are, from uint8 to a mean of about 0 and a deviation of about 1."""
    return (images.to(memory_format=torch.channels_last).float() - 110) / 60


def shifted(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images (B, 3, 16, 16) moved by up to a pixel, each colour by up to 0.3 deviations and 30% in contrast."""
    count, _, height, width = images.shape
    rows, columns = (torch.randint(-SHIFT, SHIFT + 1, (count, 1), generator=draws) for _ in range(2))
    rows = (torch.arange(height) + rows).clamp(0, height - 1)
    columns = (torch.arange(width) + columns).clamp(0, width - 1)
    moved = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    gain, level = ((2 * torch.rand(count, 1, 1, 3, generator=draws) - 1) * COLOUR for _ in range(2))
    return (plain(moved.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * (1 + gain) + level).permute(0, 3, 1, 2)


def shuffled(count: int, batch_size: int, draws: torch.Generator) -> Iterator[Tensor]:
    """The whole batches of one epoch in a random order."""
    return iter(torch.randperm(count, generator=draws)[: count - count % batch_size].split(batch_size))


Batches = Callable[[int, Model], Iterator[Tensor]]


def train(
    loss_fn: zoo.Loss,
    digits: Digits,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    make: Callable[[], Model] = Model,
    batches: Batches | None = None,
    watch: Callable[[int, Model], None] = lambda epoch, model: None,
) -> Model:
    """A model trained on the two renderings of each sample, by AdamW with a cosine of the learning rate.

    Args:
        loss_fn: Objective; it gets index and labels.
        digits: From `load`.
        batch_size: Samples of a batch; the learning rate is 0.003 times the square root of a 256th of it.
        epochs: Number of epochs.
        seed: Of the model, the order of the samples and their views; the same for every objective.
        make: Makes the model.
        batches: Indices of the batches of an epoch; by default all samples in a random order.
        watch: Called before the first epoch and after each, with the number of epochs done.
    """
    torch.manual_seed(seed)
    model = make()
    draws = torch.Generator().manual_seed(seed)
    count = len(digits.images)
    steps = epochs * (count // batch_size)
    optimizer = torch.optim.AdamW([*model.parameters(), *loss_fn.parameters()], lr=LR * math.sqrt(batch_size / 256), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
    watch(0, model)
    for epoch in range(epochs):
        for index in shuffled(count, batch_size, draws) if batches is None else batches(epoch, model):
            z1, z2 = model.train()(shifted(digits.images[index].transpose(0, 1).flatten(0, 1), draws)).chunk(2)
            optimizer.zero_grad()
            loss_fn(z1, z2, index=index, labels=digits.labels[index]).backward()
            optimizer.step()
            schedule.step()
        watch(epoch + 1, model)
    return model


@cache
def seconds_per_sample(batch_size: int) -> float:
    """How long training takes for a sample in batches of some size, from three batches after one to warm up."""
    digits, taken = load(3 * batch_size, 10), []
    for batches in (1, 3):
        some = Digits(*(part[: batches * batch_size] for part in digits))
        started = time.perf_counter()
        train(zoo.get_loss("dcl"), some, batch_size=batch_size, epochs=1, seed=0)
        taken.append((time.perf_counter() - started) / len(some.images))
    return taken[-1]


@torch.no_grad()
def embed(part: nn.Module, images: Tensor) -> Tensor:
    """What a model, or its encoder, makes of images as they are."""
    training = part.training
    found = torch.cat([part.eval()(plain(some)) for some in images.split(500)])
    part.train(training)
    return found


def projections(model: Model, digits: Digits) -> tuple[Tensor, Tensor]:
    """Projections of unit length of both renderings of all training samples."""
    return tuple(F.normalize(embed(model, digits.images[:, view]), dim=1) for view in range(2))  # type: ignore[return-value]


def accuracies(model: Model, digits: Digits) -> dict[str, float]:
    """k-NN and linear-probe accuracy in percent, of the encoder's features of held-out digits."""
    train_features, held_out = (embed(model.encoder, images) for images in (digits.images[:, 0], digits.held_out))
    parts = (train_features, digits.labels, held_out, digits.held_out_labels)
    neighbours = min(20, len(digits.labels))
    return {
        "knn": 100 * zoo.metrics.knn_accuracy(*parts, k=neighbours),
        "linear_probe": 100 * zoo.metrics.linear_probe(*parts),
    }
