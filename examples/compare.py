"""Gives several objectives the same budget, and puts what they reach in one table and one plot.

    python examples/compare.py                                        # all objectives: about ten minutes on a CPU
    python examples/compare.py --losses ntxent dcl emc2 --epochs 30
    python examples/compare.py --data cifar10 --download --backbone resnet18 --epochs 200 --workers 8

Every objective starts from the same weights and sees the same views in the same batches; its own parameters are the zoo's
defaults. All options of pretrain.py but --loss, --set and --resume are understood. Writes comparison.json, comparison.md
and comparison.png to runs/compare-<time>/, and what pretrain.py writes to one folder for each objective in there.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pretrain
import torch
from common import FIGURES, build_loss
from images import SettingError
from plotting import plot_comparison

import contrastive_zoo as zoo


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = zoo.list_losses()
    parser.add_argument("--losses", nargs="+", default=names, metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    pretrain.add_options(parser)
    return parser


def read_settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    if parser.parse_args(argv).quick:
        parser.set_defaults(**pretrain.QUICK)
    args = parser.parse_args(argv)
    for name in args.losses:  # a typo should not be noticed after an hour
        build_loss(name, [], num_samples=4, steps=1, seed=0)
    args.output = args.output or f"runs/compare-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


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


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of figures for each objective, after one for the untrained encoder."""
    rows: list[dict[str, Any]] = []
    for name in args.losses:
        options = {**vars(args), "loss": name, "set": [], "resume": None, "output": str(Path(args.output) / name)}
        results = pretrain.pretrain(argparse.Namespace(**options))
        if not rows:
            rows.append({"loss": "before training", **results["before"], "milliseconds": None})
        batch = results["settings"]["batch_size"] or pretrain.BATCH_SIZE
        rows.append({"loss": name, **results["after"], "milliseconds": milliseconds(name, batch, args.dim, results["device"])})
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as text."""
    step = "" if row["milliseconds"] is None else f"{row['milliseconds']:.2f}"
    return [row["loss"], *(form.format(row[key]) for key, _, form, _ in FIGURES), step]


def tables(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """The table for a terminal, and as Markdown."""
    lines = [["objective", *(title for _, title, _, _ in FIGURES), "ms/step"], *map(cells, rows)]
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
        rows = compare(args)
    except SettingError as error:
        parser.error(str(error))
    plain, markdown = tables(rows)
    folder = Path(args.output)
    (folder / "comparison.json").write_text(json.dumps({"rows": rows, "settings": vars(args)}, indent=2))
    (folder / "comparison.md").write_text(markdown + "\n")
    plot_comparison(rows, folder / "comparison.png")
    print(f"{plain}\n\nms/step: forward and backward pass of the objective alone. Table and plot are in {folder}/")
    return rows


if __name__ == "__main__":
    main()
