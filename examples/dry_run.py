"""What a run would be: data, model, objective, steps and memory, without training and without the data."""

import math
from argparse import Namespace
from dataclasses import replace

import torch
from common import build_loss
from errors import SettingError
from images import PUBLISHED, Published, load_images
from model import Model, build_model
from processes import choose_device
from torch import Tensor
from training import build_optimizer, build_sampler, build_scheduler, peak_rate, precision, source

import contrastive_zoo as zoo

PROBE = 2


def describe(args: Namespace) -> str:
    """Data, model, objective, steps and memory of a run.

    Raises:
        SettingError: A setting cannot be met.
    """
    data, where = sizes(args)
    sampler = build_sampler(args, data.train)
    steps = args.epochs * len(sampler)
    loss_fn = build_loss(args.loss, args.set, data.train, steps, args.seed)
    model = build_model(args, data.channels, data.size)
    build_scheduler(args, build_optimizer(args, model, loss_fn, sampler.batch_size), len(sampler))
    card = zoo.describe_loss(args.loss)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    updates = math.ceil(steps / args.accumulate)
    lines = [
        f"data        {args.data}: {data.train:,} images to learn from, {data.held_out:,} held out, {data.classes} classes, "
        f"{data.size} x {data.size} ({where})",
        f"model       {args.backbone}, {parameters / 1e6:.1f} million parameters with the head ({args.norm} normalisation)",
        f"objective   {args.loss}: {card.title}{', with ' + ', '.join(args.set) if args.set else ''}",
        f"steps       {args.epochs} epochs of {len(sampler)} batches of {sampler.batch_size} images: {updates:,} updates",
        f"optimizer   {args.optimizer}, learning rate {peak_rate(args, sampler.batch_size):.4g} at its peak ({args.schedule}), "
        f"weight decay {args.weight_decay:g}",
        f"memory      {memory(args, model, loss_fn, sampler.batch_size, data)}",
    ]
    for name, value in args.paper.items():
        lines.append(f"{name:12}{value}")
    return "\n".join(lines)


def sizes(args: Namespace) -> tuple[Published, str]:
    """Sizes of the dataset, and where they are from: what is published if it is not there.

    Raises:
        SettingError: The dataset is neither there nor known.
    """
    if args.data in PUBLISHED and args.data not in ("digits", "cluttered-digits"):
        known = PUBLISHED[args.data]
        known = known._replace(size=args.image_size or known.size)
        try:
            images = load_images(replace(source(args), download=False))
        except SettingError:
            return known, f"sizes as published; it is not in {args.root}"
    else:
        images = load_images(source(args))
    found = Published(len(images.pairs), len(images.held_out), len(images.classes), images.size, images.channels)
    return found, "found"


def memory(args: Namespace, model: Model, loss_fn: zoo.Loss, batch_size: int, data: Published) -> str:
    """An estimate of what one process needs for training: what autograd keeps of two images, times the images at once."""
    device = choose_device(args.device)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        projections = model.train()(torch.randn(PROBE, data.channels, data.size, data.size))
    each = sum(size for pointer, size in kept.items() if pointer not in weights) / len(projections)
    if precision(args.amp, device) is not None:
        each /= 2
    images = min(args.chunk or 2 * batch_size, 2 * batch_size)
    state = sum(parameter.numel() * 4 for parameter in model.parameters())
    copies = 2 + (2 if "adam" in args.optimizer else 1) + (args.ema is not None)
    tables = sum(buffer.nbytes for buffer in loss_fn.buffers())
    total = each * images + state * copies + tables
    return (
        f"about {gigabytes(total)} on one process: activations of {images:,} images {gigabytes(each * images)}, weights, "
        f"gradients and optimizer {gigabytes(state * copies)}, tables of the objective {gigabytes(tables)}"
    )


def gigabytes(size: float) -> str:
    """A number of bytes to read."""
    return f"{size / 2**30:.2f} GB"
