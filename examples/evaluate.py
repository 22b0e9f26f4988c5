"""Judges an encoder on labelled images: a run of pretrain.py, one of its checkpoints, or any pretrained model of timm.

    python examples/evaluate.py runs/ntxent-20260131-120000           # on the data of that run
    python examples/evaluate.py runs/a/checkpoint-00001000.pt --data cifar10 --root data
    python examples/evaluate.py timm:resnet18.a1_in1k --data path/to/folder     # timm loads its weights
    python examples/evaluate.py timm:resnet10t --random --data cluttered-digits # without its weights: the floor

Measures linear probes (logistic regression; SGD with augmentations), k-NN, few labels (1 % and 10 %), the nearest class mean,
retrieval of the other view with clean and with corrupted queries, and the geometry of features and projections. Writes
evaluation.json and pictures beside the checkpoint, or to --output.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import timm
import torch
import torch.nn.functional as F
from common import NEIGHBOURS, embed, sample
from draws import Draws, seeded
from errors import SettingError
from images import Images, Source, load_images
from model import build_model, create
from plotting import plot_judged
from processes import choose_device
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training import source

import contrastive_zoo as zoo

SHARES = (0.01, 0.1)
NOISE = 0.3  # of corrupted queries, in standard deviations of the normalised images


class Judged(NamedTuple):
    """An encoder, the head that it was trained with if there is one, and the images that it is judged by."""

    encoder: nn.Module
    head: nn.Module | None
    images: Images


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a run, a checkpoint, or timm:NAME")
    parser.add_argument("--random", action="store_true", help="leave timm's model without its weights")
    parser.add_argument("--data", help="as in pretrain.py (default: that of the run; digits for a model of timm)")
    parser.add_argument("--root", help="where datasets are kept (default: as in the run, or data)")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is not there")
    parser.add_argument("--image-size", type=int, help="scale images to this size (default: as in the run, or the dataset's)")
    parser.add_argument("--images", type=int, default=50_000, help="most images of each part (default: 50,000)")
    parser.add_argument("--sgd-epochs", type=int, default=20, help="of the probe with augmentations; 0: none (default: 20)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--output", help="folder for everything that is written (default: beside the checkpoint)")
    return parser


def load(args: argparse.Namespace) -> Judged:
    """The encoder and the images that the arguments name.

    Raises:
        SettingError: There is no such run, model or data.
    """
    if args.model.startswith("timm:"):
        name = args.model.removeprefix("timm:")
        images = load_images(Source(args.data or "digits", args.root or "data", args.image_size, args.download))
        return Judged(_from_timm(name, images, args.random), None, images)
    path = checkpoints.newest(args.model)
    state = checkpoints.read(path)
    settings = argparse.Namespace(**state["settings"])
    own = source(settings)  # with its views and dials
    given = {"root": args.root or settings.root, "size": args.image_size or settings.image_size, "download": args.download}
    images = load_images(replace(own if args.data in (None, settings.data) else Source(args.data), **given))
    model = build_model(settings, images.channels, images.size)
    try:
        model.load_state_dict(state["model"] if state.get("average") is None else state["average"])
    except RuntimeError as error:
        raise SettingError(f"{path} does not fit images of {args.data}: {str(error).splitlines()[-1].strip()}") from error
    args.output = args.output or str(path.parent / "evaluation")
    return Judged(model.encoder, model.head, images)


def _from_timm(name: str, images: Images, random: bool) -> nn.Module:
    if random:
        torch.manual_seed(0)
        return create(name, images.channels, images.size)
    if not timm.is_model(name) and not timm.is_model_pretrained(name):
        raise SettingError(f"timm has no pretrained model {name!r}. timm.list_pretrained() gives all names.")
    fixed = {"img_size": images.size} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    return timm.create_model(name, pretrained=True, num_classes=0, in_chans=images.channels, **fixed)


def few_labels(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], share: float) -> float:
    """Accuracy of logistic regression that sees the labels of a share of the images, one of each class at least."""
    features, labels = train
    classes = labels.unique()
    chosen = max(len(classes), round(share * len(labels)))
    if chosen >= len(labels):
        return zoo.metrics.linear_probe(*train, *held_out)
    counts = torch.bincount(labels)
    even = labels.numpy() if int(counts[counts > 0].min()) > 1 else None
    part, _ = train_test_split(range(len(labels)), train_size=chosen, stratify=even, random_state=0)
    # A class that chance leaves out would be a point less for each of its images.
    firsts = [int((labels == label).nonzero()[0]) for label in classes if label not in labels[part]]
    part = [*part, *firsts]
    return zoo.metrics.linear_probe(features[part], labels[part], *held_out)


def sgd_probe(judged: Judged, args: argparse.Namespace, device: torch.device) -> float:
    """Accuracy of a linear layer trained by SGD on views, one for each image in each epoch; the encoder is frozen."""
    images, encoder = judged.images, judged.encoder
    dataset = zoo.IndexedDataset(sample(images.pairs, args.images))
    width = encoder(torch.zeros(1, images.channels, images.size, images.size, device=device)).shape[1]
    with seeded(0):
        # Without weights of its own, batch normalisation scales features as logistic regression likes them.
        probe = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(images.classes))).to(device)
    optimizer = torch.optim.SGD(probe.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(
        dataset, batch_size=256, shuffle=True, generator=torch.Generator().manual_seed(0), num_workers=args.workers
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.sgd_epochs * len(loader))
    for epoch in range(args.sgd_epochs):
        images.set_epoch(epoch)
        for batch, labels, index in loader:
            with torch.no_grad():
                view = images.two_views(batch, device, images.draws(index, device, epoch))[0]
                features = encoder(view)
            loss = F.cross_entropy(probe(features), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    features, labels = embed(nn.Sequential(encoder, probe), sample(images.held_out, args.images), device, args.workers)
    return float((features.argmax(1) == labels).float().mean())


@torch.no_grad()
def views(judged: Judged, args: argparse.Namespace, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Features and projections of two views of the held-out images, and of the first one with noise."""
    images, encoder, head = judged.images, judged.encoder, judged.head or nn.Identity()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"first": [], "second": [], "corrupted": []}
    dataset = zoo.IndexedDataset(sample(images.held_out_pairs, args.images))
    for batch, _, index in DataLoader(dataset, batch_size=256, num_workers=args.workers):
        first, second = images.two_views(batch, device, images.draws(index, device, 0))
        noise = Draws(index.to(device), 1).normal(tuple(first.shape[1:]))
        for name, view in (("first", first), ("second", second), ("corrupted", first + NOISE * noise)):
            features = encoder(view)
            found[name].append((features.float().cpu(), head(features).float().cpu()))
    return {name: (torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])) for name, pairs in found.items()}


def geometry(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, float]:
    """How rows of length 1 lie on the sphere."""
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    collapse = zoo.metrics.neural_collapse(first, labels)
    return {
        "alignment": zoo.metrics.alignment(first, second),
        "uniformity": zoo.metrics.uniformity(first),
        "wasserstein_uniformity": zoo.metrics.wasserstein_uniformity(first),
        "effective_rank": zoo.metrics.effective_rank(first),
        "dimensions": first.shape[1],
        "within_class_distance": zoo.metrics.within_class_distance(first, labels),
        "equal_inner_product": collapse.equal_inner_product,
    }


def evaluate(judged: Judged, args: argparse.Namespace) -> tuple[dict[str, Any], tuple[Tensor, Tensor], Tensor]:
    """All figures; features and labels of the held-out images; the spectrum of the features."""
    device = choose_device(args.device)
    judged.encoder.to(device).eval()
    if judged.head is not None:
        judged.head.to(device).eval()
    parts = (sample(judged.images.train, args.images), sample(judged.images.held_out, args.images))
    train, held_out = (embed(judged.encoder, part, device, args.workers) for part in parts)
    seen = views(judged, args, device)
    accuracy = {
        "linear_probe": zoo.metrics.linear_probe(*train, *held_out),
        "knn": zoo.metrics.knn_accuracy(*train, *held_out, k=min(NEIGHBOURS, len(train[0]))),
        "nearest_class_mean": zoo.metrics.nearest_class_mean(*train, *held_out),
        **{f"labels_{share:.0%}": few_labels(train, held_out, share) for share in SHARES},
    }
    if args.sgd_epochs and judged.images.labelled:
        accuracy["sgd_probe"] = sgd_probe(judged, args, device)
    figures: dict[str, Any] = {"accuracy": accuracy, "retrieval": {}, "geometry": {}}
    for number, space in enumerate(("features", "projections")[: 1 + (judged.head is not None)]):
        first, second, corrupted = (seen[name][number] for name in ("first", "second", "corrupted"))
        for name, queries in (("clean", first), ("corrupted", corrupted)):
            found = zoo.metrics.retrieval_accuracy(queries, second, k=(1, 5)).z1_to_z2
            figures["retrieval"][f"{space}_{name}"] = {f"top_{k}": value for k, value in found.items()}
        figures["geometry"][space] = geometry(first, second, held_out[1])
    return figures, held_out, zoo.metrics.spectrum(F.normalize(seen["first"][0], dim=1))


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{name.replace('_', ' '):24}{value:8.2%}" for name, value in figures["accuracy"].items()]
    for name, values in figures["retrieval"].items():
        shown = "   ".join(f"{key.replace('_', ' ')} {value:.2%}" for key, value in values.items())
        lines.append(f"retrieval, {name.replace('_', ', '):24}{shown}")
    for space, values in figures["geometry"].items():
        lines += [f"{space + ', ' + name.replace('_', ' '):36}{value:8.3f}" for name, value in values.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = build_parser()
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        judged = load(args)
        figures, held_out, spectrum = evaluate(judged, args)
    except SettingError as error:
        parser.error(str(error))
    folder = Path(args.output or "runs/evaluation")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({**figures, "settings": vars(args)}, indent=2))
    plot_judged(figures, *held_out, spectrum, folder / "evaluation.png")
    print(f"{report(figures)}\n\nFigures and pictures are in {folder}/")
    return figures


if __name__ == "__main__":
    main()
