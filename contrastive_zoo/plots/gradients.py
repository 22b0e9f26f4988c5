"""What an objective does, shown by the weights in its gradient.

The gradient of every objective in the row of an anchor is a weighted sum of the other rows,

    grad z_a = sum_n w_n z_n - w_p z_p        up to a multiple of z_a, which normalisation removes

so the objective is described by the weights: how hard it pushes negatives away and pulls the positive, given their similarity.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_number
from contrastive_zoo.loss import Loss
from contrastive_zoo.plots.figures import panels

NEGATIVES, STEPS, LIMIT = 61, 41, 0.95


class GradientWeights(NamedTuple):
    """Weights of the rows in the gradient of an anchor.

    Attributes:
        similarity: (M,) similarities of negatives to the anchor.
        negative: (M,) weight of each negative; positive weights push it away.
        positive: Weight of the positive; positive weights pull it closer.
    """

    similarity: Tensor
    negative: Tensor
    positive: float


def gradient_weights(loss_fn: Loss, *, positive_similarity: float = 0.5) -> GradientWeights:
    """Weights of negatives and positive in the gradient of one anchor, exact and in float64.

    The batch holds the anchor, its positive, and 61 other samples, whose two rows both have one similarity to the anchor, from
    -0.95 to 0.95 in equal steps. The weights are those of the loss in `eval()`, without tables and draws. For an objective
    with a value per sample they belong to the loss of the anchor's sample, otherwise to the loss of the batch.

    Args:
        loss_fn: A loss made by `get_loss`; it stays unchanged.
        positive_similarity: Similarity of the anchor and its positive, between -1 and 1.

    Raises:
        ValueError: The similarity is not between -1 and 1.

    Examples:
        A softmax gives a negative e^(0.1 / 0.1) times the weight if its similarity is larger by 0.1:

        >>> import contrastive_zoo as zoo
        >>> weights = zoo.plots.gradient_weights(zoo.get_loss("dcl", temperature=0.1))
        >>> ratio = weights.negative[1:] / weights.negative[:-1]
        >>> steps = weights.similarity[1:] - weights.similarity[:-1]
        >>> torch.allclose(ratio.log(), steps / 0.1)
        True
    """
    positive = check_number("positive_similarity", positive_similarity, low=-1, high=1, open_low=True, open_high=True)
    card = loss_fn.card
    loss_fn = copy.deepcopy(loss_fn).cpu().double().eval()
    if card.per_sample:
        loss_fn.reduction = "none"
    similarity = torch.linspace(-LIMIT, LIMIT, NEGATIVES, dtype=torch.float64)
    z1, z2 = _views(similarity, positive)
    z1.requires_grad_()
    labels = torch.arange(len(z1)) if "labels" in card.needs else None
    value = loss_fn(z1, z2, labels=labels)
    (gradient,) = torch.autograd.grad(value[0] if card.per_sample else value, z1)
    # Every row but the anchor has a feature of its own, which shows the weight of the row.
    own = gradient[0, 1:].view(2, -1)
    heights = torch.cat([torch.tensor([positive], dtype=torch.float64), similarity])
    weights = own.sum(0) / (1 - heights**2).sqrt()
    return GradientWeights(similarity, weights[1:], -float(weights[0]))


def _views(similarity: Tensor, positive: float) -> tuple[Tensor, Tensor]:
    """Unit rows of both views, (1 + M, 1 + 2(1 + M)): the anchor's sample first, then one sample for each similarity."""
    heights = torch.cat([torch.tensor([positive], dtype=torch.float64), similarity])
    own = (1 - heights**2).sqrt().diag()
    z1, z2 = (torch.cat([heights[:, None], *blocks], 1) for blocks in ((own, 0 * own), (0 * own, own)))
    z1[0] = 0
    z1[0, 0] = 1
    return z1, z2


def plot_gradient_weights(losses: Mapping[str, Loss]) -> Any:
    """Gradient weights of losses against similarity, as a ``matplotlib.figure.Figure`` of two panels.

    The left panel shows the weight of a negative, as a multiple of the mean size of all weights. The right panel shows the
    weight of the positive, as a multiple of its largest size on the curve.

    Args:
        losses: Losses by the label of their curve; the last one is drawn on top.

    Raises:
        ImportError: Matplotlib is not installed.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> losses = {f"temperature {t}": zoo.get_loss("ntxent", temperature=t) for t in (0.1, 0.5)}
        >>> figure = zoo.plots.plot_gradient_weights(losses)
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['similarity of a negative', 'similarity of the positive']
    """
    figure, (left, right) = panels(2)
    similarity = torch.linspace(-LIMIT, LIMIT, STEPS, dtype=torch.float64)
    for label, loss_fn in losses.items():
        negatives, weights, _ = gradient_weights(loss_fn)
        left.plot(negatives.tolist(), _relative(weights, weights.abs().mean()), label=label)
        pulls = torch.tensor([gradient_weights(loss_fn, positive_similarity=s).positive for s in similarity.tolist()])
        right.plot(similarity.tolist(), _relative(pulls, pulls.abs().max()), label=label)
    left.set(xlabel="similarity of a negative", ylabel="push (mean size 1)")
    right.set(xlabel="similarity of the positive", ylabel="pull (largest size 1)")
    for axes in (left, right):
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    left.legend()
    return figure


def _relative(weights: Tensor, unit: Tensor) -> list[float]:
    """Weights as multiples of a unit; unchanged if the unit is 0."""
    return [float(weight) for weight in (weights / unit if unit else weights)]
