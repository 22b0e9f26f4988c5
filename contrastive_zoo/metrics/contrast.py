"""The exact contrastive loss over a whole feature set, and the accuracy of gradients from small batches."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_count, check_number
from contrastive_zoo.loss import get_loss
from contrastive_zoo.metrics.inputs import check_labels, check_pair


@torch.no_grad()
def global_contrastive_loss(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> float:
    """Contrastive loss of all samples against all others, the objective of sogclr, isogclr, emc2 and negative_cache.

        mean_a [ -s_ap / t + log mean_{n of another sample} exp(s_an / t) ],        a, n over both views

    Equals the value of sogclr in `eval()` with all samples in one batch, computed in float64, without overflow.

    Yuan et al., "Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm
    Performance", ICML 2022, eq. 2 with the mean in place of the sum. arXiv:2202.12387

    Args:
        z1: (N, D) features of one view, N >= 2; normalised inside.
        z2: (N, D) features of the other view, in the same order.
        temperature: Divides the cosines, positive.

    Raises:
        TypeError: `z1` or `z2` is not a floating-point tensor.
        ValueError: the shapes or devices differ, an entry is not finite, there is one sample only, or `temperature` is not
            positive.

    Examples:
        >>> z = torch.eye(3)  # positives at cosine 1, all others at 0
        >>> global_contrastive_loss(z, z, temperature=0.5)
        -2.0
    """
    x, y = check_pair(z1, z2, min_rows=2)
    return float(_global_loss(x, y, check_number("temperature", temperature, low=0, open_low=True)))


class GradientError(NamedTuple):
    """Accuracy of an estimated gradient; both values are 1 for the exact gradient.

    Attributes:
        cosine: Cosine of the angle between the estimate and the exact gradient.
        relative_length: Length of the estimate divided by the length of the exact gradient.
    """

    cosine: float
    relative_length: float


def gradient_error(
    loss_fn: Callable[..., Tensor],
    z1: Tensor,
    z2: Tensor,
    temperature: float | None = None,
    *,
    batch_size: int = 32,
    epochs: int = 20,
    warmup: int = 5,
    labels: Tensor | None = None,
    seed: int = 0,
) -> GradientError:
    """Mean gradient of a loss over random small batches of a fixed feature set, compared with the global loss's gradient.

        cos(g, G),  |g| / |G|,        g = mean over batches of the gradient of loss_fn,  G = grad global_contrastive_loss

    Each epoch visits the samples in a new random order, and drops samples at the end that do not fill a batch. The first
    `warmup` epochs only fill the tables of a stateful loss. `loss_fn` is copied, so its state does not change.

    If `z1` and `z2` require a gradient, they are differentiated directly: for a loss that looks up more of their rows, such as
    emc2 with an `encode` that returns ``torch.stack([z1, z2])[view, index]``, the gradients of these rows are included.

    Args:
        loss_fn: A loss, called as ``loss_fn(z1[i], z2[i], index=i)``, with `labels` if given.
        z1: (N, D) features of one view.
        z2: (N, D) features of the other view, in the same order.
        temperature: Temperature of the global loss; by default the temperature of `loss_fn`.
        batch_size: Samples per batch, at most N and at least 2.
        epochs: Number of epochs to average over.
        warmup: Number of epochs before the averaged epochs.
        labels: (N,) class labels for a loss that needs labels.
        seed: Random seed of the order of samples.

    Raises:
        TypeError: `z1` or `z2` is not a floating-point tensor.
        ValueError: the shapes or devices differ, an entry is not finite, a number is out of range, or `loss_fn` has no
            temperature and none is given.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> z1, z2 = torch.randn(2, 16, 8)
        >>> error = gradient_error(zoo.get_loss("dcl"), z1, z2, batch_size=16, epochs=1, warmup=0)
        >>> round(error.cosine, 4), round(error.relative_length, 4)  # the whole set is one batch
        (1.0, 1.0)
    """
    x, y = check_pair(z1, z2, min_rows=2)
    labels = None if labels is None else check_labels(labels, x, "labels")
    batch_size, epochs = check_count("batch_size", batch_size, low=2, high=len(x)), check_count("epochs", epochs)
    warmup, seed = check_count("warmup", warmup, low=0), check_count("seed", seed, low=0)
    exact = _exact_gradient(x, y, _temperature(loss_fn, temperature))
    leaves = [z if z.requires_grad else z.detach().requires_grad_() for z in (z1, z2)]
    total = _summed_gradient(copy.deepcopy(loss_fn), leaves, labels, batch_size, epochs, warmup, seed)
    estimate = total.double() / (epochs * (len(x) // batch_size))
    return GradientError(
        cosine=float(torch.nn.functional.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0)),
        relative_length=float(estimate.norm() / exact.norm()),
    )


def _temperature(loss_fn: Any, given: float | None) -> float:
    temperature = getattr(loss_fn, "temperature", None) if given is None else given
    if temperature is None:
        raise ValueError("temperature is None and loss_fn has no temperature: pass the temperature of the global loss.")
    if isinstance(temperature, Tensor):
        temperature = temperature.detach().reshape(())
    return check_number("temperature", temperature, low=0, open_low=True)


def _summed_gradient(
    loss_fn: Callable[..., Tensor],
    leaves: list[Tensor],
    labels: Tensor | None,
    batch_size: int,
    epochs: int,
    warmup: int,
    seed: int,
) -> Tensor:
    """Sum of the gradients with respect to both views over all batches after the warm-up, (2, N, D)."""
    total = torch.zeros_like(torch.stack(leaves).detach(), dtype=torch.float64)
    draws = torch.Generator().manual_seed(seed)
    for epoch in range(warmup + epochs):
        for index in torch.randperm(len(leaves[0]), generator=draws).split(batch_size):
            if len(index) < batch_size:
                continue
            place = index.to(leaves[0].device)
            extra = {} if labels is None else {"labels": labels[place]}
            loss = loss_fn(*(leaf[place] for leaf in leaves), index=index, **extra)
            if epoch >= warmup:
                total += torch.stack(torch.autograd.grad(loss, leaves))
    return total


def _global_loss(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The global loss in float64, differentiable: sogclr in evaluation mode, with all samples in one batch."""
    loss_fn = get_loss("sogclr", num_samples=len(z1), temperature=temperature).eval()
    loss: Tensor = loss_fn(z1.double(), z2.double())
    return loss


def _exact_gradient(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """(2, N, D) gradient of `global_contrastive_loss` in the features of both views, in float64."""
    x, y = (z.detach().double().requires_grad_() for z in (z1, z2))
    return torch.stack(torch.autograd.grad(_global_loss(x, y, temperature), (x, y)))
