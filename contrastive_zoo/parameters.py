"""Optimiser parameter groups for losses with learned parameters."""

from typing import Any

from contrastive_zoo.loss import Loss
from contrastive_zoo.loss.get import check_loss


def parameter_groups(loss_fn: Loss) -> list[dict[str, Any]]:
    """Optimiser groups for the learned parameters of a loss (temperatures, logit scales, biases), without weight decay.

    Weight decay pulls a parameter towards zero. For a temperature this does not simplify the model but changes the objective:
    logits grow as the temperature shrinks, and they shrink as the logarithm of a scale does.

    Objectives that bound a parameter clamp it where they use it, so no clamping after the optimiser step is needed.

    Args:
        loss_fn: A loss of the zoo. Pass the ``.module`` of a wrapper such as `DistributedDataParallel`.

    Returns:
        Groups to append to the groups of the encoder; empty for a loss without learned parameters, so the same line works for
        every loss.

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
    learned = [parameter for parameter in check_loss(loss_fn).parameters() if parameter.requires_grad]
    return [{"params": learned, "weight_decay": 0.0}] if learned else []
