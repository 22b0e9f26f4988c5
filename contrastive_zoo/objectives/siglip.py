r"""SigLIP: independent binary classification of every cross-view pair of rows: same sample or not.

    l_a = softplus(-c s_ap - b) + sum_{n in N_a} softplus(c s_an + b)        a in view 1; p, n in view 2; c = exp(logit_scale)

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, eq. 2. arXiv:2303.15343
"""

import math

import torch
from torch import Tensor, nn

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_at_most
from contrastive_zoo.logspace import log1p_exp
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.registry import POSITIVE, Range, losses
from contrastive_zoo.state.bounded import within


def _check(*, init_scale: float, init_bias: float, max_scale: float) -> None:
    """Raise if the scale starts above its maximum."""
    check_at_most("init_scale", init_scale, "max_scale", max_scale)


@losses.register(
    "siglip",
    title="SigLIP, the pairwise sigmoid loss",
    summary="Logistic regression on every cross-view pair: same sample or not; scale and bias are learned.",
    paper="Zhai et al., ICCV 2023, eq. 2. arXiv:2303.15343",
    equation=r"\ell_a = \log\big(1 + e^{-c\,s_{ap} - b}\big) + "
    r"\sum_{n \in \mathcal{N}_a} \log\big(1 + e^{c\,s_{an} + b}\big), "
    r"\quad c = e^{\theta}",
    ring=True,
    ranges={"init_scale": POSITIVE, "init_bias": Range(), "max_scale": POSITIVE},
    check=_check,
    scale="Equal to open_clip's SigLipLoss: the sum over all B x B pairs, divided by B.",
    differences=(
        "The scale never exceeds max_scale; open_clip's training loop clamps the parameter after each step instead.",
        "Pairs of different rows with the same index are ignored.",
    ),
)
class SigLIP(Objective):
    r"""Loss of each row of view 1 against all rows of view 2, (B, 1).

    $$\ell_a = \log\big(1 + e^{-c\,s_{ap} - b}\big) +
      \sum_{n \in \mathcal{N}_a} \log\big(1 + e^{c\,s_{an} + b}\big),
      \quad c = e^{\theta}$$

    The scale $c$ is the exponential of the parameter ``loss_fn.logit_scale``; the bias $b$ is ``loss_fn.logit_bias``.
    Add both parameters to the optimiser, without weight decay (`contrastive_zoo.parameter_groups`). The scale is clamped to
    ``max_scale``; at the maximum, only gradients that reduce the parameter are kept.

    Args:
        init_scale: Initial value of the scale c.
        init_bias: Initial value of the bias b; strongly negative, since nearly all pairs are pairs of different samples.
        max_scale: Largest scale.

    Raises:
        ValueError: ``init_scale`` is not in (0, max_scale].

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(4)
        >>> loss_fn = zoo.get_loss("siglip", init_scale=10, init_bias=0)
        >>> loss_fn(z, z).detach()
        tensor(2.0795)
        >>> [name for name, _ in loss_fn.named_parameters()]
        ['objective.logit_scale', 'objective.logit_bias']
    """

    def __init__(self, *, init_scale: float = 10.0, init_bias: float = -10.0, max_scale: float = 100.0) -> None:
        super().__init__()
        self.init_scale, self.init_bias = init_scale, float(init_bias)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        self.logit_bias = nn.Parameter(torch.tensor(self.init_bias))
        self.largest = torch.tensor(math.log(max_scale), device="cpu").item()  # rounded like the parameter

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore the scale and the bias that the constructor was given."""
        super().reset_parameters()
        self.logit_scale.fill_(math.log(self.init_scale))
        self.logit_bias.fill_(self.init_bias)

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        bias = self.logit_bias.reshape(()).to(batch.x.dtype)
        scale = within(self.logit_scale, -math.inf, self.largest).to(batch.x.dtype).exp()
        (x, y), ids = batch.each_view(), batch.sample_ids
        negatives = batch.pairs.softplus_sum(x, y, scale=scale, bias=bias, ids=ids, key_ids=ids, uniform=batch.uniform)
        positives = log1p_exp(-scale * batch.positive_similarity() - bias)
        losses = positives + negatives[:, None]
        return losses if batch.complete else torch.where(batch.negatives_count(views=1) > 0, losses, -torch.inf)
