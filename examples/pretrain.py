"""Pretrains any timm backbone with any objective of the zoo, and judges it before and after on held-out images.

    python examples/pretrain.py                                       # ntxent on handwritten digits: a minute or two on a CPU
    python examples/pretrain.py --loss emc2 --set temperature=0.2     # any objective, any parameter of it
    python examples/pretrain.py --data path/to/folder --backbone vit_tiny_patch16_224 --workers 8
    python examples/pretrain.py --data cifar10 --download --backbone resnet18 --epochs 200 --batch-size 512 --workers 8
    python examples/pretrain.py --resume runs/ntxent-20260131-120000  # goes on where that run was interrupted

Writes results.json, checkpoint.pt, training.png, embedding.png and TensorBoard scalars to runs/<loss>-<time>/.
"""

import argparse
import inspect
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from common import (
    FIGURES,
    Evaluation,
    autocast,
    build_encoder,
    build_head,
    build_loss,
    embed_both,
    evaluate,
    knn,
    read_checkpoint,
)
from images import Images, SettingError, load_images
from plotting import plot_embedding, plot_training
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import contrastive_zoo as zoo

CHECKPOINT = "checkpoint.pt"
BATCH_SIZE = 256
QUICK = {"epochs": 2, "batch_size": 32}
# What may be given anew when a run is resumed.
FREE = {"resume", "output", "device", "workers", "root", "download", "epochs"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of one training run, whatever the objective."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="digits", help="digits, cifar10, cifar100, stl10, or a folder (default: digits)")
    data.add_argument("--root", default="data", help="where torchvision keeps its datasets (default: data)")
    data.add_argument("--download", action="store_true", help="let torchvision download what is not there")
    data.add_argument("--image-size", type=int, help="scale images to this size (default: the dataset's; 224 for a folder)")
    data.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", default="resnet10t", help="any of timm.list_models() (default: resnet10t)")
    model.add_argument("--dim", type=int, default=128, help="width of the projections (default: 128)")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=20, help="passes over the images (default: 20)")
    training.add_argument("--batch-size", type=int, help=f"images in a batch (default: {BATCH_SIZE})")
    training.add_argument("--batch-sampler", default="shuffle", help=f"one of {', '.join(zoo.list_batch_samplers())}")
    training.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW (default: 0.002)")
    training.add_argument("--weight-decay", type=float, default=1e-4, help="of matrices and filters (default: 0.0001)")
    training.add_argument("--seed", type=int, default=0, help="of weights, batches, views and the objective (default: 0)")
    training.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    training.add_argument("--quick", action="store_true", help="a few steps on a few images, to see that everything works")
    parser.add_argument("--output", help="folder for everything that is written (default: runs/<loss>-<time>)")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="ntxent", help=f"one of {', '.join(zoo.list_losses())} (default: ntxent)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the objective")
    parser.add_argument("--resume", metavar="FOLDER", help="folder of a run to go on with")
    add_options(parser)
    return parser


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings from the command line, with the defaults of a quick or of a resumed run if it is one."""
    args = parser.parse_args(argv)
    saved: dict[str, Any] = {}
    if args.resume:
        saved = {
            **read_checkpoint(Path(args.resume) / CHECKPOINT, vars(args))["args"],
            "resume": args.resume,
            "output": args.resume,
        }
    parser.set_defaults(**(saved or (QUICK if args.quick else {})))
    args = parser.parse_args(argv)
    for name in saved.keys() - FREE:
        if getattr(args, name) != saved[name]:
            raise SettingError(f"--resume: the run has {name} = {saved[name]!r}, which cannot become {getattr(args, name)!r}.")
    args.output = args.output or f"runs/{args.loss}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


@dataclass(frozen=True)
class Run:
    """All that a training run consists of."""

    args: argparse.Namespace
    device: torch.device
    images: Images
    encoder: nn.Module
    head: nn.Module
    loss_fn: zoo.Loss
    sampler: zoo.batch_samplers.BatchSampler
    optimizer: torch.optim.Optimizer

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.args.epochs * len(self.sampler)

    def parts(self) -> dict[str, Any]:
        """What has a state to save and restore."""
        modules = {"encoder": self.encoder, "head": self.head, "loss": self.loss_fn}
        return {**modules, "optimizer": self.optimizer, "sampler": self.sampler}


def prepare(args: argparse.Namespace) -> Run:
    """Images, model, objective and optimizer as the settings say."""
    device = choose_device(args.device)
    images = load_images(args.data, args.root, args.image_size, args.download)
    if args.quick:
        images = images.first(128, 64)
    sampler = build_sampler(args.batch_sampler, args.batch_size, len(images.pairs), args.seed)
    loss_fn = build_loss(args.loss, args.set, len(images.pairs), args.epochs * len(sampler), args.seed).to(device)
    torch.manual_seed(args.seed)
    encoder = build_encoder(args.backbone, images)
    head = build_head(encoder, images, args.dim).to(device)
    encoder.to(device, memory_format=torch.channels_last)
    # The objective comes along: some have parameters to learn.
    parameters = [parameter for module in (encoder, head, loss_fn) for parameter in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return Run(args, device, images, encoder, head, loss_fn, sampler, torch.optim.AdamW(groups, lr=args.lr))


def choose_device(name: str) -> torch.device:
    """CUDA where there is one for "auto", otherwise what the name says."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"--device {name}: {error}") from error


def build_sampler(name: str, batch_size: int | None, num_samples: int, seed: int) -> zoo.batch_samplers.BatchSampler:
    """The batch sampler behind a name, with its own size of batches if it has one and none is given."""
    try:
        chooses = zoo.describe_batch_sampler(name).parameters["batch_size"] is not inspect.Parameter.empty
        size = {} if batch_size is None and chooses else {"batch_size": batch_size or BATCH_SIZE}
        return zoo.get_batch_sampler(name, num_samples=num_samples, seed=seed, **size)
    except (ValueError, TypeError) as error:
        raise SettingError(str(error)) from error


def learning_rate(run: Run, step: int) -> float:
    """Half a cosine from the peak to zero, after a linear rise over a twentieth of the steps."""
    warmup = math.ceil(run.steps / 20)
    return run.args.lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / run.steps)))


def train_epoch(run: Run, epoch: int, bar: tqdm) -> list[float]:
    """One pass over the images; returns the loss of each step."""
    # Views and batches depend on seed and epoch only, so a resumed run sees what an uninterrupted one would.
    torch.manual_seed(run.args.seed + 10_000 * (epoch + 1))
    run.sampler.set_epoch(epoch)
    if run.sampler.needs_features:
        refresh(run)
    run.encoder.train(), run.head.train()
    loader = DataLoader(zoo.IndexedDataset(run.images.pairs), batch_sampler=run.sampler, num_workers=run.args.workers)
    losses = []
    for step, (batch, labels, index) in enumerate(loader, start=epoch * len(run.sampler)):
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(run, step)
        views = torch.cat(run.images.two_views(batch, run.device))
        with autocast(run.device):
            z1, z2 = run.head(run.encoder(views.contiguous(memory_format=torch.channels_last))).chunk(2)
            loss = run.loss_fn(z1, z2, index=index, labels=labels.to(run.device))
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        losses.append(loss.detach())
        bar.update()
        if step % 5 == 0:  # reading a figure waits for the device
            figures = {"loss": float(losses[-1]), **diagnostics(run.loss_fn)}
            bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
    return torch.stack(losses).tolist()


def refresh(run: Run) -> None:
    """Let the batch sampler choose by what the model makes of the training images now."""
    loader = DataLoader(zoo.IndexedDataset(run.images.pairs), batch_size=BATCH_SIZE, num_workers=run.args.workers)

    def views(item: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, _, index = item
        return *run.images.two_views(batch, run.device), index

    amp = torch.bfloat16 if run.device.type == "cuda" else None
    model = nn.Sequential(run.encoder, run.head)
    run.sampler.refresh(*zoo.batch_samplers.encode(model, loader, views=views, device=run.device, amp=amp))


def diagnostics(loss_fn: zoo.Loss) -> dict[str, float]:
    """Figures of the last step."""
    return {name: float(value) for name, value in loss_fn.diagnostics.items()}


def save_checkpoint(run: Run, epoch: int, history: dict[str, Any]) -> None:
    """Everything that the run needs to go on after `epoch` epochs; never a file that is half written."""
    path = Path(run.args.output) / CHECKPOINT
    state = {name: part.state_dict() for name, part in run.parts().items()}
    torch.save({**state, "epoch": epoch, "history": history, "args": vars(run.args)}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load_checkpoint(run: Run) -> tuple[int, dict[str, Any]]:
    """Put the run where the checkpoint was: epochs done, and the history up to there."""
    path = Path(run.args.resume) / CHECKPOINT
    saved = read_checkpoint(path, vars(run.args), run.device)
    for name, part in run.parts().items():
        try:
            part.load_state_dict(saved[name])
        except Exception as error:  # anything may be in an entry
            raise SettingError(f"--resume: {name} in {path} does not fit. {type(error).__name__}: {error}") from error
    return saved["epoch"], saved["history"]


def tensorboard(folder: str) -> Any:
    """A writer of TensorBoard scalars, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)


def train(run: Run, before: Evaluation) -> dict[str, Any]:
    """Train to the end, with about ten checkpoints on the way; returns losses by step and k-NN accuracy by epoch."""
    done, history = 0, {"loss": [], "knn": [[0, before.figures["knn"]]]}
    if run.args.resume:
        done, history = load_checkpoint(run)
    writer = tensorboard(run.args.output)
    with tqdm(total=run.steps, initial=done * len(run.sampler), desc=run.args.loss, unit="step", dynamic_ncols=True) as bar:
        for epoch in range(done, run.args.epochs):
            losses = train_epoch(run, epoch, bar)
            history["loss"] += losses
            last = epoch + 1 == run.args.epochs
            if last or (epoch + 1) % math.ceil(run.args.epochs / 10) == 0:
                accuracy = knn(*embed_both(run.encoder, run.images, run.device, run.args.workers))
                history["knn"].append([epoch + 1, accuracy])
                bar.write(f"epoch {epoch + 1:>4}   loss {sum(losses) / len(losses):8.4f}   k-NN accuracy {accuracy:.2%}")
                save_checkpoint(run, epoch + 1, history)
            if writer:
                write_scalars(writer, run, epoch, losses, history)
    if writer:
        writer.close()
    return history


def write_scalars(writer: Any, run: Run, epoch: int, losses: list[float], history: dict[str, Any]) -> None:
    """Loss of each step of an epoch, diagnostics at its end, and k-NN accuracy if it was measured."""
    end = (epoch + 1) * len(run.sampler)
    for step, loss in enumerate(losses, start=end - len(losses)):
        writer.add_scalar("loss", loss, step)
    for name, value in diagnostics(run.loss_fn).items():
        writer.add_scalar(f"diagnostics/{name}", value, end)
    if history["knn"][-1][0] == epoch + 1:
        writer.add_scalar("knn", history["knn"][-1][1], end)


def pretrain(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, train, evaluate; write results and plots; return the results."""
    run = prepare(args)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    before = evaluate(run.encoder, run.head, run.images, run.device, args.workers)
    history = train(run, before)
    after = evaluate(run.encoder, run.head, run.images, run.device, args.workers)
    results = {
        "loss": args.loss,
        "before": before.figures,
        "after": after.figures,
        "history": history,
        "diagnostics": diagnostics(run.loss_fn),
        "training_images": len(run.images.train),
        "held_out_images": len(run.images.held_out),
        "device": str(run.device),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": vars(args),
        "versions": {"contrastive_zoo": zoo.__version__, "torch": torch.__version__, "timm": timm.__version__},
    }
    (Path(args.output) / "results.json").write_text(json.dumps(results, indent=2))
    plot_training(history, args.loss, Path(args.output) / "training.png")
    plot_embedding(before, after, run.images.classes, args.loss, Path(args.output) / "embedding.png")
    return results


def report(results: dict[str, Any]) -> str:
    """The figures before and after as a table."""
    settings = results["settings"]
    lines = [
        f"{results['loss']} with {settings['backbone']} on {settings['data']}: {results['training_images']:,} images to learn "
        f"from, {results['held_out_images']:,} held out, {settings['epochs']} epochs, {results['seconds']:.0f} s",
        "",
        f"{'':20}{'before':>9}{'after':>9}",
    ]
    for key, title, form, meaning in FIGURES:
        before, after = (form.format(results[when][key]) for when in ("before", "after"))
        lines.append(f"{title:20}{before:>9}{after:>9}   {meaning}")
    return "\n".join([*lines, "", f"Results, checkpoint and plots are in {settings['output']}/"])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = build_parser()
    try:
        results = pretrain(read_settings(parser, argv))
    except SettingError as error:
        parser.error(str(error))
    print(report(results))
    return results


if __name__ == "__main__":
    main()
