"""What the examples share: a loss from the command line, and the evaluation of an encoder."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from draws import Draws
from errors import SettingError
from images import Images
from settings import parse_params
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import contrastive_zoo as zoo

NEIGHBOURS = 20
# Key, title, format and meaning of each figure of an evaluation.
FIGURES = (
    ("knn", "k-NN accuracy", "{:.2%}", f"vote of the {NEIGHBOURS} nearest training images, by the backbone's features"),
    ("linear_probe", "linear probe", "{:.2%}", "logistic regression on the backbone's features"),
    ("class_mean", "nearest class mean", "{:.2%}", "class whose mean feature is the nearest: do classes form clusters?"),
    ("alignment", "alignment", "{:.3f}", "squared distance of the projections of two views; 0 is perfect"),
    ("uniformity", "uniformity", "{:.3f}", "log mean exp(-2 distance²) of projections; 0 is collapse, about -4 is uniform"),
    ("effective_rank", "effective rank", "{:.1f}", "directions that the projections use; 1 is collapse"),
)
# A projection that uses fewer directions, or spreads less, tells samples apart no longer.
LOWEST_RANK, HIGHEST_UNIFORMITY = 2.0, -0.05


def build_loss(name: str, given: list[str], num_samples: int, steps: int, seed: int) -> zoo.Loss:
    """The objective behind a name, with parameters from the command line.

    A moving average of a stateful objective follows the recent steps only at first: its weight `gamma` falls from 1 to 0.2
    over the run, unless it is given.

    Raises:
        SettingError: The zoo refuses the name or a parameter.
    """
    params = parse_params(given)
    try:
        card = zoo.describe_loss(name)
        if card.stateful and "gamma" in card.parameters:
            params.setdefault("gamma", zoo.CosineSchedule(1.0, 0.2, steps=max(1, steps)))
        return zoo.get_loss(name, **{"num_samples": num_samples, "seed": seed, **params})
    except (ValueError, TypeError) as error:
        raise SettingError(str(error)) from error


class Evaluation(NamedTuple):
    """What an encoder is worth.

    Attributes:
        figures: Value of each of `FIGURES`.
        features: (N, D) features of the held-out images.
        labels: (N,) their labels.
    """

    figures: dict[str, float]
    features: Tensor
    labels: Tensor


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, full precision elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def embed(encoder: nn.Module, dataset: Any, device: torch.device, workers: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) of all images of a dataset, and labels (N,)."""
    encoder.eval()
    features, labels = [], []
    for images, batch_labels in DataLoader(dataset, batch_size=256, num_workers=workers):
        with autocast(device):
            features.append(encoder(images.to(device)).float().cpu())
        labels.append(batch_labels)
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def project(encoder: nn.Module, head: nn.Module, images: Images, device: torch.device, workers: int) -> list[Tensor]:
    """Projections, (N, D) each and of length 1, of two views of all held-out images: the same views every time."""
    encoder.eval(), head.eval()
    pairs = []
    dataset = zoo.IndexedDataset(images.held_out_pairs)
    for batch, _, index in DataLoader(dataset, batch_size=256, num_workers=workers):
        draws = partial(Draws, index.to(device), 0)
        with autocast(device):
            pairs.append([head(encoder(view)).float().cpu() for view in images.two_views(batch, device, draws)])
    return [F.normalize(torch.cat(view), dim=1) for view in zip(*pairs, strict=True)]


def embed_both(encoder: nn.Module, images: Images, device: torch.device, workers: int) -> list[tuple[Tensor, Tensor]]:
    """Features and labels of the training and of the held-out images."""
    return [embed(encoder, part, device, workers) for part in (images.train, images.held_out)]


def knn(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """k-NN accuracy of held-out features, the quickest figure of a representation."""
    return zoo.metrics.knn_accuracy(*train, *held_out, k=min(NEIGHBOURS, len(train[0])))


def sample(dataset: Any, most: int) -> Any:
    """A dataset, or as many of its samples, drawn once and for all, as an evaluation takes."""
    if len(dataset) <= most:
        return dataset
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:most]
    return Subset(dataset, chosen.sort().values.tolist())


def evaluate(encoder: nn.Module, head: nn.Module, images: Images, device: torch.device, workers: int) -> Evaluation:
    """All `FIGURES` of an encoder and its head, on held-out images."""
    train, held_out = embed_both(encoder, images, device, workers)
    z1, z2 = project(encoder, head, images, device, workers)
    figures = {
        "knn": knn(train, held_out),
        "linear_probe": zoo.metrics.linear_probe(*train, *held_out),
        "class_mean": zoo.metrics.nearest_class_mean(*train, *held_out),
        "alignment": zoo.metrics.alignment(z1, z2),
        "uniformity": zoo.metrics.uniformity(z1),
        "effective_rank": zoo.metrics.effective_rank(z1),
    }
    return Evaluation(figures, *held_out)


def collapsed(figures: dict[str, float]) -> str | None:
    """What tells that the projections have collapsed; None if they have not."""
    if figures["effective_rank"] < LOWEST_RANK:
        return f"the projections use {figures['effective_rank']:.2f} directions (effective rank)"
    if figures["uniformity"] > HIGHEST_UNIFORMITY:
        return f"the projections lie in one place (uniformity {figures['uniformity']:.3f})"
    return None
