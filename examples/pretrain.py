"""Pretrains any timm backbone with any objective of the zoo, and judges it before, meanwhile and after on held-out images.

    python examples/pretrain.py                                       # ntxent on handwritten digits, on a CPU
    python examples/pretrain.py --loss emc2 --set temperature=0.2     # any objective, any parameter of it
    python examples/pretrain.py --data cluttered-digits --epochs 30   # where objectives differ; nothing to download
    python examples/pretrain.py --data path/to/folder --backbone vit_tiny_patch16_224 --workers 8
    python examples/pretrain.py --config examples/recipes/simclr_cifar10.toml --dry-run
    torchrun --nproc_per_node=8 examples/pretrain.py --config examples/recipes/sogclr_imagenet.toml --root /data
    python examples/pretrain.py --resume runs/ntxent-20260131-120000  # goes on where that run was interrupted

Writes settings.toml, log.jsonl, checkpoints, results.json, training.png, embedding.png and TensorBoard scalars to
runs/<loss>-<time>/. Ctrl-C and SIGTERM save before they stop; a run that is resumed continues to the bit.
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import timm
import torch
from common import FIGURES, Evaluation, collapsed, evaluate, sample
from dry_run import describe
from errors import Diverged, SettingError, Stopped
from plotting import plot_embedding, plot_training
from processes import Stop, processes, rank, wait, world_size
from settings import build_parser, read_settings, save_settings
from torch.utils.data import DataLoader
from training import VIEWS, Run, forward_backward, gradient_norm, prepare, refresh, set_rate, update, views_of
from watching import Log, origin, read_log

import contrastive_zoo as zoo

# Images of each part that an evaluation looks at: enough for a curve, and quick.
JUDGED_BY = 5_000
# Steps that running statistics of batch normalisation need: before, projections look as if they had collapsed.
SETTLED = 100
IN_OBJECTIVE = "Images, parameters and projections are finite: it comes from the objective. Try a higher temperature."


def judge(run: Run) -> Evaluation:
    """Figures of the model now."""
    parts = {name: sample(getattr(run.images, name), JUDGED_BY) for name in ("train", "held_out", "held_out_pairs")}
    return evaluate(run.judged.encoder, run.judged.head, replace(run.images, **parts), run.device, run.args.workers)


def batches(run: Run, step: int) -> DataLoader[Any]:
    """What is left of the epoch that a step belongs to."""
    epoch, seen = divmod(step, len(run.sampler))
    run.sampler.set_epoch(epoch)
    run.images.set_epoch(epoch)
    if run.sampler.needs_features and not seen:
        refresh(run, epoch)
    run.trained.train()
    dataset = zoo.IndexedDataset(run.images.pairs)
    return DataLoader(dataset, batch_sampler=run.sampler, num_workers=run.args.workers, pin_memory=run.device.type == "cuda")


def train_step(run: Run, log: Log, step: int, item: Any) -> bool:
    """Learn from a batch; returns whether the loss is known to be a number.

    Raises:
        Diverged: The loss or the gradients are not finite.
    """
    batch, labels, index = item
    rate = set_rate(run, step)
    views = views_of(run, batch, index, VIEWS, step // len(run.sampler))
    try:
        loss = forward_backward(run, step, views, labels, index)
        norm = gradient_norm(run) if run.updates(step) else None
        known = log.record(step, loss, norm, rate, len(index) * world_size())
    except (Diverged, ValueError) as error:  # on the CPU an objective refuses features that are not finite
        where = origin(run.model, torch.cat(views), run.loss_fn)
        if isinstance(error, ValueError):
            if where is None:
                raise
            error = Diverged(log.history(f"Projections are not finite at step {step + 1}."))
        raise Diverged(f"{error} {where or IN_OBJECTIVE}") from error
    if norm is not None:
        update(run)
    return known


def train(run: Run, log: Log, stop: Stop, step: int) -> Evaluation | None:
    """Train from a step to the end; returns the last evaluation if one was made.

    Raises:
        Stopped: It is time to stop; there is a checkpoint.
    """
    epoch_length = len(run.sampler)
    save_every = run.args.save_every or epoch_length
    eval_every = run.args.eval_every or math.ceil(run.args.epochs / 10)
    due = stopping = False
    evaluation = None
    while step < run.steps:
        for item in log.timed(batches(run, step)):
            known = train_step(run, log, step, item)
            step += 1
            epoch, rest = divmod(step, epoch_length)
            if not rest and (step == run.steps or epoch % eval_every == 0):
                evaluation = look(run, log, step)
            stopping = stopping or (known and stop.wanted())
            due = due or stopping or step % save_every == 0 or step == run.steps
            if due and run.updates(step - 1):  # gradients that wait for others would be lost
                save(run, log, step)
                due = False
                if stopping and step < run.steps:
                    raise Stopped(step, run.steps, run.args.output, stop.signal)
    return evaluation


def look(run: Run, log: Log, step: int) -> Evaluation | None:
    """Evaluate on the first process, and warn of a collapse; the others wait."""
    evaluation = None
    if rank() == 0:
        evaluation = judge(run)
        log.evaluation(step, step // len(run.sampler), evaluation.figures)
        if step >= SETTLED and (why := collapsed(evaluation.figures)):
            advice = "Features no longer tell samples apart: try a lower --lr, another temperature, or stronger --views."
            warnings.warn(f"Collapse after {step} steps: {why}. {advice}", stacklevel=2)
        run.trained.train()
    wait()
    return evaluation


def save(run: Run, log: Log, step: int) -> None:
    """Write a checkpoint, unless the loss is no number."""
    log.flush()
    if rank() == 0:
        checkpoints.write(Path(run.args.output), run.state(step))
    wait()


def pretrain(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, train, evaluate; write results and plots; return the results, on the first process.

    Raises:
        SettingError: A setting cannot be met.
        Diverged: The loss or the gradients are not finite.
        Stopped: The run was asked to stop, and can be resumed.
    """
    started = time.perf_counter()
    with processes(args.device) as device:
        run = prepare(args, device)
        saved = checkpoints.read(Path(args.resume)) if getattr(args, "resume", None) else None
        before = judge(run) if rank() == 0 else None
        step = 0 if saved is None else run.load(saved)
        log = Log(run, step)
        try:
            if before is not None:
                save_settings(args)
                if not step:
                    log.evaluation(0, 0, before.figures)
            with Stop(args.stop_after, device).listening() as stop:
                after = train(run, log, stop, step)
        finally:
            log.close()
        if before is None:
            return {}
        return write_results(run, before, after or judge(run), log.diagnostics(), time.perf_counter() - started)


def write_results(
    run: Run, before: Evaluation, after: Evaluation, diagnostics: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Write results and plots; return the results."""
    args, folder = run.args, Path(run.args.output)
    history = read_log(folder)
    results = {
        "loss": args.loss,
        "before": before.figures,
        "after": after.figures,
        "diagnostics": diagnostics,
        "training_images": len(run.images.pairs),
        "held_out_images": len(run.images.held_out),
        "steps": run.steps,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "device": str(run.device),
        "processes": world_size(),
        "seconds": round(seconds, 1),
        "settings": vars(args),
        "versions": {"contrastive_zoo": zoo.__version__, "torch": torch.__version__, "timm": timm.__version__},
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    plot_training(history, args.loss, folder / "training.png")
    plot_embedding(before, after, run.images.classes, args.loss, folder / "embedding.png")
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
    return "\n".join([*lines, "", f"Results, checkpoints, log and plots are in {settings['output']}/"])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = build_parser(__doc__)
    try:
        args = read_settings(parser, argv)
        if args.dry_run:
            print(describe(args))
            return {}
        results = pretrain(args)
    except SettingError as error:
        parser.error(str(error))
    except Diverged as error:
        sys.exit(f"{error}\nThe last checkpoint was written before: go on from it with --resume {args.output}")
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped)
        sys.exit(stopped.code)
    if results:
        print(report(results))
    return results


if __name__ == "__main__":
    main()
