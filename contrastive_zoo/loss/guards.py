"""Checks against silent training errors: broken state, recomputation, processes whose state differs."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from contrastive_zoo.batch.features import HALF
from contrastive_zoo.batch.options import Options
from contrastive_zoo.checks import comparable
from contrastive_zoo.devices import readable, transforming
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.registry import Card
from contrastive_zoo.state.counters import Seed, StepCounter
from contrastive_zoo.state.temperature import Temperature


def refuse_options(card: Card, options: Options) -> None:
    """Raise if an option that all losses share has no meaning for an objective.

    Raises:
        ValueError: The reduction is of values per sample that do not exist, or the objective needs all rows at once.
    """
    if options.reduction != "mean" and not card.per_sample:
        raise ValueError(
            f"reduction={options.reduction!r} has no meaning for {card.name!r}, which has no value per sample. Use 'mean'."
        )
    if options.gather == "ring" and not card.ring:
        raise ValueError(
            f"gather='ring' has log-sum-exps and sums of softplus over the rows of other processes, and {card.name!r} needs "
            "more of these rows. Use gather='auto'."
        )


def refuse_broken_state(card: Card, parts: Sequence[nn.Module], tables: Iterable[tuple[nn.Module, str]]) -> None:
    """Raise if a learned parameter is NaN, or a wrapper converted a table to half precision.

    Args:
        card: Summary of the objective.
        parts: Modules of the objective, itself first.
        tables: Modules and names of the buffers that this step updates.

    Raises:
        ValueError: A learned parameter on the CPU is NaN.
        TypeError: A table is in half precision.
    """
    for part in () if torch.compiler.is_compiling() else parts:
        for parameter in part._parameters.values():
            if parameter is not None and readable(parameter) and parameter.numel() == 1 and math.isnan(parameter.item()):
                name = next(name for name, each in parts[0].named_parameters() if each is parameter)
                learned = name.removeprefix("_").removesuffix(".value")
                raise ValueError(f"the learned {learned} of {card.name!r} is NaN: training has diverged.")
    for module, name in tables:
        dtype = getattr(module, name).dtype
        if dtype in HALF:
            raise TypeError(
                f"the table {name!r} of {card.name!r} is in {dtype}, too coarse for a moving average. "
                "Something converted it: for FSDP, pass MixedPrecision(buffer_dtype=torch.float32)."
            )


def refuse_recomputation(card: Card) -> None:
    """Raise in a forward pass that a backward pass repeats, which would advance tables and random state twice.

    Raises:
        RuntimeError: A backward pass is running.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{card.name!r} keeps state, and a backward pass called it again, as activation checkpointing does: its "
            "tables would move twice in one step. Checkpoint the encoder only; the loss holds little more than features."
        )


def refuse_transforms(card: Card, parts: Sequence[nn.Module], joined: bool) -> None:
    """Raise in a training step inside of a transform of `torch.func`, if the step changes state or needs other processes.

    Args:
        card: Summary of the objective.
        parts: Modules of the objective.
        joined: Whether the batches of several processes are joined.

    Raises:
        RuntimeError: A transform cannot do what the step does.
    """
    if torch.compiler.is_compiling() or not transforming():
        return
    inside = "inside of a transform (torch.func.grad, vmap, jacrev, ...)"
    if card.stateful or any(isinstance(part, StepCounter) for part in parts):
        raise RuntimeError(
            f"{card.name!r} changes its state in every training step, which is not possible {inside}. Use loss.backward() or "
            "torch.autograd.grad, or loss_fn.eval(), whose in-batch form changes no state and has derivatives of all orders "
            "with backend='dense'."
        )
    if joined:
        raise RuntimeError(
            f"{card.name!r} joins the batches of several processes, which is not possible {inside}. Use loss.backward() or "
            "torch.autograd.grad, or make the loss with gather=False."
        )


def state_of(objective: Objective) -> dict[str, object]:
    """The state of an objective that must be equal on all processes, by name, as far as the host knows its values."""
    parts = list(objective.modules())
    held = [part.agreed() for part in parts if isinstance(part, Temperature)]
    return {
        "temperature": held[0] if held else None,
        "what is learned": [name for name, parameter in objective.named_parameters() if parameter.requires_grad],
        **{f"the shape of {name}": list(buffer.shape) for name, buffer in objective.named_buffers()},
        **{f"the shape of {name}": list(shape) for name, shape in objective.divided_shapes().items()},
        "seed": [part.value for part in parts if isinstance(part, Seed)],
        "the number of steps so far": [
            part.value.item() for part in parts if isinstance(part, StepCounter) and part.value.is_cpu
        ],
        **{name: comparable(value) for name, value in objective.agreement().items()},
    }
