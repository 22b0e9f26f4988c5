"""Gives several objectives the same budget, over several seeds, and puts what they reach in one table and one plot.

    python examples/compare.py --losses ntxent dcl sogclr emc2        # cluttered digits, three seeds
    python examples/compare.py --data digits --seeds 1                # all objectives on digits: the quickest look
    python examples/compare.py --data cifar10 --download --backbone resnet18 --small-stem --epochs 200 --workers 8
    python examples/compare.py --output runs/compare-20260131-120000  # goes on where that comparison was interrupted

With one seed every objective starts from the same weights and sees the same views in the same batches; its own parameters are
the zoo's defaults. All options of pretrain.py but --loss, --set and --resume are understood, and must be the same when a
comparison goes on. Writes comparison.json, comparison.md and comparison.png to runs/compare-<time>/, with a folder in there for
each run.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import checkpoints
import pretrain
import torch
from common import FIGURES, build_loss
from errors import Diverged, SettingError, Stopped
from plotting import plot_comparison
from settings import BATCH_SIZE, FREE, add_options, read_settings

import contrastive_zoo as zoo

SETTINGS = "comparison_settings.json"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = zoo.list_losses()
    parser.add_argument("--losses", nargs="+", default=names, metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each objective, from --seed on (default: 3)")
    add_options(parser)
    parser.set_defaults(data="cluttered-digits")
    return parser


def check(args: argparse.Namespace) -> None:
    """Notice a typo before an hour of training, and other settings than those of a comparison that goes on.

    Raises:
        SettingError: An objective does not exist, or a setting has changed.
    """
    for name in args.losses:
        build_loss(name, [], num_samples=4, steps=1, seed=0)
    if args.seeds < 1:
        raise SettingError(f"--seeds must be at least 1, got {args.seeds}.")
    path = Path(args.output) / SETTINGS
    if path.exists():
        saved = json.loads(path.read_text())
        # More objectives or seeds may be asked for; the runs that are there stay.
        for name in saved.keys() - FREE - {"losses", "seeds", "config", "paper"} | {"epochs"}:
            if getattr(args, name) != saved[name]:
                raise SettingError(
                    f"--output {args.output}: the comparison there has {name} = {saved[name]!r}, not {getattr(args, name)!r}."
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(vars(args), indent=2))


def train(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Results of one run, which are read if it has ended, and which is resumed if it has begun."""
    folder = Path(args.output) / f"{name}-{seed}"
    if (folder / "results.json").exists():
        return json.loads((folder / "results.json").read_text())
    begun = checkpoints.in_folder(folder)
    own = {"loss": name, "set": [], "seed": seed, "resume": str(begun[0]) if begun else None, "output": str(folder)}
    return pretrain.pretrain(argparse.Namespace(**{**vars(args), **own}))


def milliseconds(name: str, batch: int, dim: int, device: str, repeats: int = 20) -> float:
    """Median time of an objective's forward and backward pass on random features."""
    loss_fn = build_loss(name, [], num_samples=batch, steps=repeats, seed=0).to(device)
    z1, z2 = torch.randn(2, batch, dim, device=device, requires_grad=True)
    index, times = torch.arange(batch), []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        gradient = torch.autograd.grad(loss_fn(z1, z2, index=index, labels=index.to(device)), z1)[0]
        float(gradient[0, 0])  # waits for the device
        times.append(1000 * (time.perf_counter() - started))
    return median(times[3:])


def row(name: str, figures: Sequence[dict[str, float]], step: float | None) -> dict[str, Any]:
    """Mean and standard deviation of figures over seeds."""
    columns = {key: [one[key] for one in figures] for key, _, _, _ in FIGURES}
    spread = {key: stdev(values) if len(values) > 1 else 0.0 for key, values in columns.items()}
    return {
        "loss": name,
        "mean": {key: mean(values) for key, values in columns.items()},
        "spread": spread,
        "milliseconds": step,
    }


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of figures for each objective, after one for the untrained encoder."""
    seeds = range(args.seed, args.seed + args.seeds)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.losses}
    for seed in seeds:  # all objectives have a first result early
        for name in args.losses:
            found[name].append(train(args, name, seed))
    rows = [row("before training", [results["before"] for results in found[args.losses[0]]], None)]
    for name, runs in found.items():
        step = milliseconds(name, args.batch_size or BATCH_SIZE, args.dim, runs[0]["device"])
        rows.append(row(name, [results["after"] for results in runs], step))
    return rows


def cells(row: dict[str, Any], seeds: int) -> list[str]:
    """A row of the table as text."""
    texts = []
    for key, _, form, _ in FIGURES:
        text = form.format(row["mean"][key])
        texts.append(f"{text} ± {form.format(row['spread'][key])}" if seeds > 1 else text)
    return [row["loss"], *texts, "" if row["milliseconds"] is None else f"{row['milliseconds']:.2f}"]


def tables(rows: list[dict[str, Any]], seeds: int) -> tuple[str, str]:
    """The table for a terminal, and as Markdown."""
    lines = [["objective", *(title for _, title, _, _ in FIGURES), "ms/step"], *(cells(row, seeds) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[text.ljust(widths[0]), *map(str.rjust, rest, widths[1:])] for text, *rest in lines]
    plain = "\n".join("  ".join(line) for line in padded)
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))
    return plain, markdown


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = build_parser()
    try:
        args = read_settings(parser, argv)
        check(args)
        rows = compare(args)
    except SettingError as error:
        parser.error(str(error))
    except Diverged as error:
        sys.exit(str(error))
    except Stopped as stopped:
        print(f"{stopped}\nThe comparison goes on with the same command and --output {args.output}")
        sys.exit(stopped.code)
    plain, markdown = tables(rows, args.seeds)
    folder = Path(args.output)
    (folder / "comparison.json").write_text(json.dumps({"rows": rows, "settings": vars(args)}, indent=2))
    (folder / "comparison.md").write_text(markdown + "\n")
    plot_comparison(rows, folder / "comparison.png")
    print(f"{plain}\n\n±: standard deviation over {args.seeds} seeds. ms/step: the objective alone. All of it is in {folder}/")
    return rows


if __name__ == "__main__":
    main()
