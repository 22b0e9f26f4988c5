"""What the examples share: backbone and head, a loss from the command line, and the evaluation of an encoder."""

import ast
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from images import Images, SettingError
from torch import Tensor, nn
from torch.utils.data import DataLoader

import contrastive_zoo as zoo

NEIGHBOURS = 20
# Key, title, format and meaning of each figure of an evaluation.
FIGURES = (
    ("knn", "k-NN accuracy", "{:.2%}", f"vote of the {NEIGHBOURS} nearest training images, by the backbone's features"),
    ("linear_probe", "linear probe", "{:.2%}", "logistic regression on the backbone's features"),
    ("class_mean", "nearest class mean", "{:.2%}", "class whose mean feature is the nearest: do classes form clusters?"),
    ("alignment", "alignment", "{:.3f}", "squared distance of the projections of two views; 0 is perfect"),
    ("uniformity", "uniformity", "{:.3f}", "log mean exp(-2 distance²) of projections; 0 is collapse, about -4 is uniform"),
)


def parse_params(given: list[str]) -> dict[str, Any]:
    """``["temperature=0.2", "kernel=log"]`` as a dictionary; values are Python literals, or else strings.

    Raises:
        SettingError: An entry is not of the form name=value.
    """
    params = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals:
            raise SettingError(f"--set takes name=value, got {entry!r}.")
        try:
            params[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            params[name] = value
    return params


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


def build_encoder(name: str, images: Images) -> nn.Module:
    """A timm model without its classifier, randomly initialised.

    Raises:
        SettingError: timm has no model by that name.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.3)
        raise SettingError(f"timm has no model {name!r}. Closest: {', '.join(close)}. timm.list_models() gives all names.")
    # Transformers are built for one size of images; convolutional networks take any, and refuse to be told.
    fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    options = {"img_size": images.size} if fixed else {}
    return timm.create_model(name, pretrained=False, num_classes=0, in_chans=images.channels, **options)


def build_head(encoder: nn.Module, images: Images, dim: int) -> nn.Module:
    """The projection head: the loss sees what comes out of it, the evaluation what goes in."""
    with torch.no_grad():
        width = encoder.eval()(torch.zeros(1, images.channels, images.size, images.size)).shape[1]
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim))


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
    """Projections, (N, D) each and of length 1, of two views of all held-out images."""
    encoder.eval(), head.eval()
    # The same views in every evaluation; training seeds each of its epochs anew, so this leaves no trace there.
    torch.manual_seed(0)
    pairs = []
    for batch, _ in DataLoader(images.held_out_pairs, batch_size=256, num_workers=workers):
        with autocast(device):
            pairs.append([head(encoder(view)).float().cpu() for view in images.two_views(batch, device)])
    return [F.normalize(torch.cat(view), dim=1) for view in zip(*pairs, strict=True)]


def embed_both(encoder: nn.Module, images: Images, device: torch.device, workers: int) -> list[tuple[Tensor, Tensor]]:
    """Features and labels of the training and of the held-out images."""
    return [embed(encoder, part, device, workers) for part in (images.train, images.held_out)]


def knn(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """k-NN accuracy of held-out features, the quickest figure of a representation."""
    return zoo.metrics.knn_accuracy(*train, *held_out, k=min(NEIGHBOURS, len(train[0])))


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
    }
    return Evaluation(figures, *held_out)


def read_checkpoint(path: Path, options: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint of `pretrain.py`, checked as far as possible without the run; ``options`` are those that a run has."""
    if not path.is_file():
        raise SettingError(f"--resume: there is no {path}.")
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # anything may be in a file
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        raise SettingError(f"--resume: {path} cannot be read: empty, truncated or no checkpoint. {reason}") from error
    kinds = dict.fromkeys(("args", "encoder", "head", "loss", "optimizer", "sampler", "history"), dict) | {"epoch": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(saved, dict) or not isinstance(saved.get(name), kind)]
    if wrong:
        raise SettingError(f"--resume: {path} is no checkpoint of this script: {', '.join(wrong)} missing or of another kind.")
    missing = sorted(set(options) - saved["args"].keys())
    missing += [name for name in ("loss", "knn") if not isinstance(saved["history"].get(name), list)]
    if missing:
        raise SettingError(f"--resume: {path} is of another version of this script: it lacks {', '.join(missing)}.")
    return saved
