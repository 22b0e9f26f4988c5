"""Settings of a training run: command line over file over defaults; they are saved with the run, as a file to run again."""

import argparse
import ast
import difflib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoints
from errors import SettingError

import contrastive_zoo as zoo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BATCH_SIZE = 256
QUICK = {"epochs": 2, "batch_size": 32}
# What may be given anew when a run is resumed: how it runs and what it shows, not what it computes.
FREE = {
    "resume",
    "output",
    "device",
    "workers",
    "root",
    "download",
    "epochs",
    "save_every",
    "eval_every",
    "log_every",
    "stop_after",
}
# What the settings beside the results leave out: another run is written elsewhere.
UNSAVED = ("config", "resume", "output", "dry_run")
# Settings that are tables in a file, and words NAME=VALUE on the command line.
TABLES = ("set", "batch_sampler_option", "optimizer_option")
OFF = argparse.BooleanOptionalAction


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of pretrain.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", default="ntxent", help=f"one of {', '.join(zoo.list_losses())} (default: ntxent)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the objective")
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with, or one of its checkpoints")
    parser.add_argument("--dry-run", action="store_true", help="print data, model, objective, steps and memory, and stop")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of one training run, whatever the objective."""
    parser.add_argument("--config", metavar="FILE", help="settings in TOML, such as recipes/*.toml, under those given here")
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_training(parser.add_argument_group("training"))
    _add_run(parser.add_argument_group("run"))


def _add_data(group: Any) -> None:
    known = "digits, cluttered-digits, cifar10, cifar100, stl10, tiny-imagenet, imagenet100, imagenet"
    group.add_argument("--data", default="digits", help=f"{known}, or a folder (default: digits)")
    group.add_argument("--root", default="data", help="where datasets are kept (default: data)")
    group.add_argument("--download", action=OFF, default=False, help="let torchvision download what is not there")
    group.add_argument("--image-size", type=int, help="scale images to this size (default: the dataset's; 224 for a folder)")
    group.add_argument("--views", help="moco, simclr, simclr-small or cluttered-digits (default: moco, or the dataset's own)")
    group.add_argument("--batched-views", action=OFF, help="make views of a batch on the device (default: below 128 pixels)")
    group.add_argument("--clutter", type=float, default=0.7, help="contrast behind cluttered digits, 0 to 1 (default: 0.7)")
    group.add_argument("--same-background", type=float, default=0.5, help="share of digits with one background (default: 0.5)")
    group.add_argument("--workers", type=int, default=0, help="processes that load images, for each process (default: 0)")


def _add_model(group: Any) -> None:
    group.add_argument("--backbone", default="resnet10t", help="any of timm.list_models() (default: resnet10t)")
    group.add_argument("--small-stem", action=OFF, default=False, help="a ResNet's 3x3 stem for images of 32 pixels")
    group.add_argument("--norm", choices=("batch", "group", "sync"), default="batch", help="normalisation (default: batch)")
    group.add_argument("--hidden", type=int, help="width inside of the projection head; 0: none (default: the backbone's)")
    group.add_argument("--dim", type=int, default=128, help="width of the projections (default: 128)")
    group.add_argument("--channels-last", action=OFF, default=True, help="memory format of convolutions (default: on)")
    group.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile the model")


def _add_training(group: Any) -> None:
    group.add_argument("--epochs", type=int, default=20, help="passes over the images (default: 20)")
    group.add_argument("--batch-size", type=int, help=f"images in a batch, of all processes together (default: {BATCH_SIZE})")
    group.add_argument("--batch-sampler", default="shuffle", help=f"one of {', '.join(zoo.list_batch_samplers())}")
    parameter = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    group.add_argument("--batch-sampler-option", **parameter, help="a parameter of the batch sampler")
    optimizers = "any of timm.optim.list_optimizers(): adamw, lars, sgd (Nesterov's; momentum without)... (default: adamw)"
    group.add_argument("--optimizer", default="adamw", help=optimizers)
    group.add_argument("--optimizer-option", **parameter, help="a parameter of the optimizer, such as trust_coeff=0.02")
    group.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default: 0.002)")
    scales = ("none", "linear", "sqrt")
    group.add_argument("--lr-scale", choices=scales, default="none", help="let --lr be that of 256 images (default: none)")
    group.add_argument("--momentum", type=float, default=0.9, help="of sgd and lars (default: 0.9)")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="of matrices and filters (default: 0.0001)")
    group.add_argument("--schedule", default="cosine", help="of timm: cosine, poly, tanh, step, constant... (default: cosine)")
    group.add_argument("--warmup", type=float, help="epochs in which the learning rate rises (default: a twentieth)")
    group.add_argument("--clip", type=float, help="largest norm of the gradient (default: any)")
    group.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make a step (default: 1)")
    group.add_argument("--chunk", type=int, help="images that the model sees at once, by zoo.cached_backward (default: all)")
    group.add_argument("--ema", type=float, metavar="DECAY", help="keep a moving average of the weights, and evaluate it")
    group.add_argument(
        "--amp", choices=("auto", "none", "bf16", "fp16"), default="auto", help="auto: bf16 on CUDA, none elsewhere"
    )
    group.add_argument("--seed", type=int, default=0, help="of weights, batches, views and the objective (default: 0)")


def _add_run(group: Any) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    group.add_argument("--save-every", type=int, metavar="STEPS", help="steps between checkpoints (default: an epoch)")
    group.add_argument("--eval-every", type=int, metavar="EPOCHS", help="epochs between evaluations (default: a tenth)")
    group.add_argument("--log-every", type=int, metavar="STEPS", default=10, help="steps between figures (default: 10)")
    group.add_argument("--stop-after", type=float, metavar="MINUTES", help="save and stop, to be resumed")
    group.add_argument("--quick", action="store_true", help="a few steps on a few images, to see that everything works")
    group.add_argument("--output", help="folder for everything that is written (default: runs/<loss>-<time>)")


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings from the command line, over those of a file or of a resumed run, over the defaults.

    Raises:
        SettingError: The file or the run cannot be read, or a setting of a run would change.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    parser.set_defaults(paper={})
    if getattr(args, "resume", None):
        if args.config:
            raise SettingError("--resume brings the settings of the run: leave out --config.")
        return _resumed(parser, given, args.resume)
    if args.quick:
        parser.set_defaults(**QUICK)
    if args.config:
        tokens, paper = file_options(parser, Path(args.config))
        given = tokens + given
        parser.set_defaults(paper=paper)
    args = parser.parse_args(given)
    args.output = args.output or f"runs/{getattr(args, 'loss', 'compare')}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def _resumed(parser: argparse.ArgumentParser, given: list[str], run: str) -> argparse.Namespace:
    """Settings of a run, with those that may be given anew."""
    path = checkpoints.newest(run)
    saved = checkpoints.read(path)["settings"]
    free = {**saved, "resume": str(path), "output": str(path.parent), "stop_after": None}
    parser.set_defaults(**free)
    args = parser.parse_args(given)
    args.resume = str(path)
    for name in saved.keys() - FREE:
        if getattr(args, name) != saved[name]:
            raise SettingError(f"--resume: the run has {name} = {saved[name]!r}, which cannot become {getattr(args, name)!r}.")
    return args


def file_options(parser: argparse.ArgumentParser, path: Path) -> tuple[list[str], dict[str, Any]]:
    """The settings of a TOML file as words of a command line, and what its table [paper] says.

    Raises:
        SettingError: It cannot be read, or has a setting that does not exist.
    """
    try:
        settings = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"--config {path}: {error}") from error
    paper = settings.pop("paper", {})
    known = {action.dest: action for action in parser._actions}
    words: list[str] = []
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in known or name in ("help", "config", "resume"):
            close = difflib.get_close_matches(name, known, n=3)
            raise SettingError(f"--config {path}: there is no setting {key!r}. Closest: {', '.join(close) or 'none'}.")
        option = "--" + name.replace("_", "-")
        if name in TABLES:
            entries = [f"{entry}={setting}" for entry, setting in value.items()] if isinstance(value, dict) else value
            words += [word for entry in entries for word in (option, entry)]
        elif isinstance(value, bool):
            words += [option] if value else ["--no-" + option[2:]] if isinstance(known[name], OFF) else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return words, paper


def save_settings(args: argparse.Namespace) -> None:
    """Write the settings beside the results, for --config; what is not set has no line."""
    kept = {name: value for name, value in vars(args).items() if value not in (None, [], {}) and name not in UNSAVED}
    paper = kept.pop("paper", {})
    lines = [f"{name} = {json.dumps(value)}" for name, value in sorted(kept.items())]
    if paper:
        lines += ["", "[paper]", *(f"{name} = {json.dumps(value)}" for name, value in paper.items())]
    (Path(args.output) / "settings.toml").write_text("\n".join(lines) + "\n")


def parse_params(given: list[str], option: str = "--set") -> dict[str, Any]:
    """``["temperature=0.2", "kernel=log"]`` as a dictionary; values are Python literals, or else strings.

    Raises:
        SettingError: An entry is not of the form name=value.
    """
    params = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals:
            raise SettingError(f"{option} takes name=value, got {entry!r}.")
        try:
            params[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            params[name] = value
    return params
