"""What an optimiser needs to know about a loss that learns."""

from typing import Any

from contrastive_zoo.loss import Loss


def parameter_groups(loss_fn: Loss) -> list[dict[str, Any]]:
    """Optimiser parameter groups for what a loss itself learns: temperatures, logit scales and biases, without weight decay.

    Weight decay pulls a parameter towards zero, which for a temperature is no simpler model but a different one: similarities
    would count for more and more, or, as logarithms of a scale, for less and less.

    Objectives that bound a parameter clamp it where they use it, so an optimiser needs no step of its own for that.

    Args:
        loss_fn: A loss of the zoo. One that is wrapped, in `DistributedDataParallel` for instance, is its ``.module``.

    Returns:
        Groups to append to those of the encoder; empty if the loss learns nothing, so that the same line serves all names.

    Raises:
        TypeError: ``loss_fn`` is no loss of the zoo.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> encoder = torch.nn.Linear(8, 4)
        >>> loss_fn = zoo.get_loss("ntxent", temperature=torch.nn.Parameter(torch.tensor(0.1)))
        >>> groups = [{"params": encoder.parameters()}, *zoo.parameter_groups(loss_fn)]
        >>> optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.1, 0.0]
        >>> zoo.parameter_groups(zoo.get_loss("ntxent"))
        []
    """
    if not isinstance(loss_fn, Loss):
        raise TypeError(f"loss_fn must be a loss made by zoo.get_loss, got {type(loss_fn).__name__}.")
    learned = [parameter for parameter in loss_fn.parameters() if parameter.requires_grad]
    return [{"params": learned, "weight_decay": 0.0}] if learned else []
