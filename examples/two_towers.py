"""Trains two encoders on two modalities: the picture of a digit in a scene, and the digit as 64 strokes of ink.

    python examples/two_towers.py                                     # clip: a minute or two on a CPU
    python examples/two_towers.py --loss siglip
    python examples/two_towers.py --loss sogclr --set intra_view=False    # a table for each modality
    torchrun --nproc_per_node=2 examples/two_towers.py

The first modality is a cluttered digit (cluttered_digits.py), the second the 8 x 8 scan that it was made of, a row of numbers.
Judged by retrieval among held-out digits: does a picture find its scan, and a scan its picture? Writes results.json.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cluttered_digits import Part, cluttered_digits
from common import build_loss
from draws import Draws
from errors import SettingError
from model import create, width_of
from processes import processes, rank, world_size
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm
from views import MEAN, STD, VIEWS

import contrastive_zoo as zoo


@dataclass(frozen=True)
class Pairs:
    """Pictures (N, 3, 32, 32) with values from 0 to 1, and scans (N, 64)."""

    pictures: Tensor
    scans: Tensor


class Towers(nn.Module):
    """An encoder for each modality; both end in rows of the same width."""

    def __init__(self, backbone: str, dim: int) -> None:
        super().__init__()
        encoder = create(backbone, 3, 32)
        self.pictures = nn.Sequential(encoder, nn.Linear(width_of(encoder, 3, 32), dim))
        self.scans = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, dim))

    def forward(self, pictures: Tensor, scans: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both, (B, D) each."""
        return self.pictures(pictures), self.scans(scans)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="clip", help="clip, siglip, sogclr with intra_view=False, ... (default: clip)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the objective")
    parser.add_argument("--backbone", default="resnet10t", help="of the pictures, a name of timm (default: resnet10t)")
    parser.add_argument("--dim", type=int, default=128, help="width of the features (default: 128)")
    parser.add_argument("--samples", type=int, default=5_748, help="pairs to learn from (default: 5,748, four a digit)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the pairs (default: 10)")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs in a batch of all processes (default: 128)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW (default: 0.002)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, views and the objective (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pairs, to see that everything works")
    parser.add_argument("--output", help="folder of the results (default: runs/two-towers-<loss>-<time>)")
    return parser


def pairs(part: Part) -> Pairs:
    """Pictures and scans of a part."""
    scans = torch.from_numpy(load_digits().data[part.digits]).float() / 8 - 1
    return Pairs(torch.from_numpy(part.images[:, 0]).float() / 255, scans)


def normalised(pictures: Tensor) -> Tensor:
    """Pictures with mean 0 and standard deviation 1 over ImageNet, as the views have them."""
    mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pictures - mean) / std


@torch.no_grad()
def judge(towers: Towers, held_out: Pairs, device: torch.device) -> dict[str, float]:
    """Shares of held-out pictures that find their scan, and of scans that find their picture."""
    towers.eval()
    found = zoo.metrics.retrieval_accuracy(
        *towers(normalised(held_out.pictures.to(device)), held_out.scans.to(device)), k=(1, 5)
    )
    named = {"picture_to_scan": found.z1_to_z2, "scan_to_picture": found.z2_to_z1}
    return {f"{name}_top_{k}": value for name, values in named.items() for k, value in values.items()}


def train(args: argparse.Namespace, towers: Towers, train: Pairs, device: torch.device) -> list[float]:
    """Train to the end; returns the loss of each step."""
    dataset = zoo.IndexedDataset(TensorDataset(train.pictures, train.scans))
    try:
        sampler = zoo.get_batch_sampler("shuffle", num_samples=len(dataset), batch_size=args.batch_size, seed=args.seed)
    except ValueError as error:
        raise SettingError(str(error)) from error
    steps = args.epochs * len(sampler)
    loss_fn = build_loss(args.loss, args.set, len(dataset), steps, args.seed).to(device)
    if "labels" in loss_fn.needs:
        raise SettingError(f"--loss {args.loss} learns from labels, and pairs have none.")
    groups = [{"params": towers.parameters(), "weight_decay": 0.05}, *zoo.parameter_groups(loss_fn)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    model = DistributedDataParallel(towers) if world_size() > 1 else towers
    losses = []
    with tqdm(total=steps, desc=args.loss, unit="step", dynamic_ncols=True, disable=rank() > 0) as bar:
        for epoch in range(args.epochs):
            sampler.set_epoch(epoch)
            model.train()
            for pictures, scans, index in DataLoader(dataset, batch_sampler=sampler):
                view = VIEWS["cluttered-digits"].batch(pictures.to(device), Draws(index.to(device), args.seed, epoch))
                loss = loss_fn(*model(view, scans.to(device)), index=index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
                losses.append(loss.detach())
                bar.update()
    return torch.stack(losses).tolist()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Judge, train, judge; returns and writes the results, on the first process."""
    if args.quick:
        args.samples, args.epochs, args.batch_size = 128, 2, 32
    with processes(args.device) as device:
        parts = [pairs(part) for part in cluttered_digits(train=args.samples, held_out=60 if args.quick else 360)]
        torch.manual_seed(args.seed)
        towers = Towers(args.backbone, args.dim).to(device)
        before, started = judge(towers, parts[1], device), time.perf_counter()
        losses = train(args, towers, parts[0], device)
        seconds = round(time.perf_counter() - started, 1)
        results = {"before": before, "after": judge(towers, parts[1], device), "losses": losses, "seconds": seconds}
        if rank() > 0:
            return {}
    folder = Path(args.output or f"runs/two-towers-{args.loss}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({**results, "settings": vars(args)}, indent=2))
    print(f"{args.loss}: {len(losses)} steps in {seconds:.0f} s, loss {losses[0]:.3f} to {losses[-1]:.3f}\n")
    for name, value in results["after"].items():
        print(f"{name.replace('_', ' '):24}{before[name]:8.2%} before  {value:8.2%} after")
    return results


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = build_parser()
    try:
        return run(parser.parse_args(sys.argv[1:] if argv is None else argv))
    except SettingError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
