"""One training run: what it consists of, one step of it, and its state."""

import inspect
import math
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from common import build_loss
from draws import seed_of
from errors import SettingError
from images import Images, Source, load_images
from model import Model, build_model
from processes import rank, world_size
from settings import BATCH_SIZE, parse_params
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import contrastive_zoo as zoo

# Each use of the seed has random numbers of its own.
VIEWS, REFRESH, LAYERS = range(3)
PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Run:
    """All that a training run consists of.

    Attributes:
        args: Settings.
        device: Device of this process.
        images: Images.
        model: Encoder and head.
        trained: The model as it is called in training: compiled, and wrapped if there are several processes.
        loss_fn: Objective.
        sampler: Chooses the batches of all processes.
        optimizer: Of the model and of what the objective learns.
        scheduler: timm's schedule of the learning rate.
        scaler: Scales the loss in float16.
        average: Moving average of the weights, or None.
    """

    args: Namespace
    device: torch.device
    images: Images
    model: Model
    trained: nn.Module
    loss_fn: zoo.Loss
    sampler: zoo.batch_samplers.BatchSampler
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    average: ModelEmaV3 | None

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.args.epochs * len(self.sampler)

    @property
    def judged(self) -> Model:
        """The model that is evaluated: the average if there is one."""
        return self.model if self.average is None else self.average.module

    def parameters(self) -> list[nn.Parameter]:
        """All that is learned."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def updates(self, step: int) -> bool:
        """Whether the weights change after a step: gradients of some batches may be accumulated."""
        return (step + 1) % self.args.accumulate == 0 or step + 1 == self.steps

    def precision(self) -> torch.autocast:
        """Autocast as the settings say."""
        dtype = precision(self.args.amp, self.device)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def state(self, step: int) -> dict[str, Any]:
        """Everything that the run needs to go on after a number of steps; random numbers are functions of seed and step."""
        epoch, seen = divmod(step, len(self.sampler))
        parts = {"model": self.model, "loss": self.loss_fn, "optimizer": self.optimizer, "scaler": self.scaler}
        state = {name: part.state_dict() for name, part in parts.items()}
        average = None if self.average is None else self.average.module.state_dict()
        sampler = self.sampler.state_dict(batches_seen=seen, epoch=epoch)
        return {**state, "average": average, "sampler": sampler, "step": step, "settings": vars(self.args)}

    def load(self, state: dict[str, Any]) -> int:
        """Put the run where a state was taken; returns the number of steps."""
        parts = {"model": self.model, "loss": self.loss_fn, "optimizer": self.optimizer, "scaler": self.scaler}
        for name, part in {**parts, "sampler": self.sampler}.items():
            part.load_state_dict(state[name])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        return state["step"]


def precision(amp: str, device: torch.device) -> torch.dtype | None:
    """Type of numbers in the model; None for float32."""
    if amp == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return PRECISIONS[amp]


def source(args: Namespace) -> Source:
    """The images that the settings name."""
    dial = {"clutter": args.clutter, "same_background": args.same_background}
    where = {"root": args.root, "size": args.image_size, "download": args.download}
    return Source(args.data, **where, views=args.views, on_device=args.batched_views, seed=args.seed, **dial)


def prepare(args: Namespace, device: torch.device) -> Run:
    """Images, model, objective and optimizer as the settings say.

    Raises:
        SettingError: A setting cannot be met.
    """
    for name in ("epochs", "accumulate", "log_every", "save_every", "eval_every", "chunk"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise SettingError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if args.norm == "sync" and device.type != "cuda":
        raise SettingError("--norm sync: PyTorch synchronises batch statistics on GPUs only; use --norm group on the CPU.")
    if world_size() > 1 and parse_params(args.set).get("tables") == "sharded":
        raise SettingError("--set tables=sharded: the first process writes the checkpoints, and has a part of the tables only.")
    images = load_images(source(args))
    if args.quick:
        images = images.first(128, 64)
    count = len(images.pairs)
    sampler = build_sampler(args, count)
    loss_fn = build_loss(args.loss, args.set, count, args.epochs * len(sampler), args.seed).to(device)
    if "labels" in loss_fn.needs and not images.labelled:
        raise SettingError(f"--loss {args.loss} needs labels, which most images of {args.data} do not have.")
    model = build_model(args, images.channels, images.size).to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(args, model, loss_fn, sampler.batch_size)
    scheduler = build_scheduler(args, optimizer, len(sampler))
    average = None if args.ema is None else ModelEmaV3(model, decay=args.ema)
    scaler = torch.amp.GradScaler(device.type, enabled=precision(args.amp, device) == torch.float16)
    trained = torch.compile(model, backend=args.compile) if args.compile else model
    if world_size() > 1:
        trained = DistributedDataParallel(trained, device_ids=[device.index] if device.type == "cuda" else None)
    return Run(args, device, images, model, trained, loss_fn, sampler, optimizer, scheduler, scaler, average)


def build_sampler(args: Namespace, num_samples: int) -> zoo.batch_samplers.BatchSampler:
    """The batch sampler of the settings, with its own size of batches if it has one and none is given.

    Raises:
        SettingError: The zoo refuses the name, the size or a parameter.
    """
    given = parse_params(args.batch_sampler_option, "--batch-sampler-option")
    try:
        chooses = zoo.describe_batch_sampler(args.batch_sampler).parameters["batch_size"] is not inspect.Parameter.empty
        size = {} if args.batch_size is None and chooses else {"batch_size": args.batch_size or BATCH_SIZE}
        return zoo.get_batch_sampler(args.batch_sampler, num_samples=num_samples, seed=args.seed, **size, **given)
    except (ValueError, TypeError) as error:
        raise SettingError(str(error)) from error


def peak_rate(args: Namespace, batch_size: int) -> float:
    """The learning rate for as many images as make a step, if --lr is that of 256."""
    ratio = batch_size * args.accumulate / 256
    return args.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[args.lr_scale]


def build_optimizer(args: Namespace, model: nn.Module, loss_fn: zoo.Loss, batch_size: int) -> torch.optim.Optimizer:
    """An optimizer of timm by name; vectors and what the objective learns have no weight decay, and no adaptation by LARS."""
    if args.optimizer.lower().removeprefix("lookahead_") not in list_optimizers():
        raise SettingError(f"timm has no optimizer {args.optimizer!r}. timm.optim.list_optimizers() gives all names.")
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        *zoo.parameter_groups(loss_fn),
    ]
    options = {"lr": peak_rate(args, batch_size), "weight_decay": args.weight_decay, "momentum": args.momentum}
    options |= parse_params(args.optimizer_option, "--optimizer-option")
    try:
        return create_optimizer_v2(groups, args.optimizer, **options)
    except (ValueError, TypeError) as error:
        raise SettingError(f"--optimizer {args.optimizer}: {error}") from error


def build_scheduler(args: Namespace, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    """A schedule of timm by name, in steps of the optimizer, after a linear rise."""
    updates = math.ceil(args.epochs * steps_per_epoch / args.accumulate)
    share = args.epochs / 20 if args.warmup is None else args.warmup
    warmup = min(math.ceil(share * steps_per_epoch / args.accumulate), updates - 1)
    # "step" falls to a tenth at two thirds of the run and once more at its end.
    spans = {"num_epochs": updates, "decay_epochs": math.ceil(updates / 1.5), "warmup_epochs": warmup}
    first = optimizer.param_groups[0]["lr"] / max(warmup, 1)
    in_updates = {"step_on_epochs": False, "updates_per_epoch": 1}
    try:
        scheduler, _ = create_scheduler_v2(optimizer, args.schedule, **spans, warmup_lr=first, **in_updates)
    except (AssertionError, ValueError) as error:
        raise SettingError(f"--schedule {args.schedule}: {error}") from error
    if scheduler is None and args.schedule != "none":
        raise SettingError(f"--schedule {args.schedule}: timm has cosine, poly, tanh, step and others, or none.")
    return scheduler


def set_rate(run: Run, step: int) -> float:
    """Set the learning rate of a step, and return it."""
    if run.scheduler is not None:
        run.scheduler.step_update(step // run.args.accumulate)
    return run.optimizer.param_groups[0]["lr"]


def views_of(run: Run, batch: Any, index: Tensor, *numbers: int) -> tuple[Tensor, Tensor]:
    """Two views of a batch, as functions of the samples and of numbers."""
    draws = run.images.draws(index, run.device, run.args.seed, *numbers)
    first, second = run.images.two_views(batch, run.device, draws)
    if not run.args.channels_last:
        return first, second
    return first.contiguous(memory_format=torch.channels_last), second.contiguous(memory_format=torch.channels_last)


def forward_backward(run: Run, step: int, views: tuple[Tensor, Tensor], labels: Tensor, index: Tensor) -> Tensor:
    """Add the gradients of a batch; returns its loss, detached."""
    seed_layers(run, step)
    given = {"index": index, "labels": labels.to(run.device) if run.images.labelled else None}

    def backward(loss: Tensor) -> None:
        run.scaler.scale(loss / run.args.accumulate).backward()

    # Gradients of several processes are averaged once, when they are used.
    local = isinstance(run.trained, DistributedDataParallel) and not run.updates(step)
    with run.trained.no_sync() if local else nullcontext():
        if run.args.chunk:
            with run.precision():
                return zoo.cached_backward(
                    run.loss_fn, run.trained, views, chunk_size=run.args.chunk, **given, backward=backward
                )
        with run.precision():
            z1, z2 = run.trained(torch.cat(views)).chunk(2)
            loss = run.loss_fn(z1, z2, **given)
        backward(loss)
    return loss.detach()


def seed_layers(run: Run, step: int) -> None:
    """Let dropout and the like be a function of seed, step and process."""
    seed = seed_of(run.args.seed, LAYERS, step, rank())
    torch.default_generator.manual_seed(seed)
    if run.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def gradient_norm(run: Run) -> Tensor:
    """The norm of the gradients, which are clipped if --clip is given."""
    run.scaler.unscale_(run.optimizer)
    return nn.utils.clip_grad_norm_(run.parameters(), run.args.clip or math.inf).detach()


def update(run: Run) -> None:
    """Change the weights by the gradients."""
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    if run.average is not None:
        run.average.update(run.model)


def refresh(run: Run, epoch: int) -> None:
    """Let the batch sampler choose by what the model makes of the training images now; each process looks at its share."""
    own = range(rank(), len(run.images.pairs), world_size())
    indexed = torch.utils.data.Subset(zoo.IndexedDataset(run.images.pairs), own)
    loader = DataLoader(indexed, batch_size=BATCH_SIZE, num_workers=run.args.workers)

    def views(item: Any) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, index = item
        return *views_of(run, batch, index, REFRESH, epoch), index

    found = zoo.batch_samplers.encode(
        run.model, loader, views=views, device=run.device, amp=precision(run.args.amp, run.device)
    )
    run.sampler.refresh(*found)
