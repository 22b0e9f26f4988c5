r"""CLIP: InfoNCE between two modalities with a learned temperature, stored as the logarithm of its inverse.

    l_a = -s_ap/tau + log( exp(s_ap/tau) + sum_{n in N_a} exp(s_an/tau) ),    tau = exp(-logit_scale)

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, fig. 3. arXiv:2103.00020
"""

import math

import torch
from torch import Tensor, nn

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_at_most
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.objectives.infonce import infonce
from contrastive_zoo.registry import Range, losses
from contrastive_zoo.state.bounded import within


def _check(*, init_scale: float, max_scale: float) -> None:
    """Raise if the scale would be clamped before the first step."""
    check_at_most("init_scale", init_scale, "max_scale", max_scale)


@losses.register(
    "clip",
    title="CLIP's contrastive loss",
    summary="InfoNCE between two modalities with a learned temperature.",
    paper="Radford et al., ICML 2021, fig. 3. arXiv:2103.00020",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + "
    r"\log\Big(e^{s_{ap}/\tau} + \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\Big), "
    r"\quad \tau = e^{-\theta}",
    uses={"index", "negatives"},
    ring=True,
    ranges={"init_scale": Range(1), "max_scale": Range(1)},
    check=_check,
    scale="Equal to open_clip's ClipLoss.",
    differences=(
        "The scale is a parameter of the loss, clamped to [1, max_scale] where it is used; open_clip keeps it in the model and "
        "clamps it after each step, to [1, 100].",
    ),
)
class CLIP(Objective):
    r"""Loss of each anchor, (B, 2): `infonce` at temperature $\tau = e^{-\theta}$, with $\theta$ the parameter `logit_scale`.

    $$\ell_a = -\frac{s_{ap}}{\tau} +
      \log\Big(e^{s_{ap}/\tau} + \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\Big),
      \quad \tau = e^{-\theta}$$

    Add ``loss_fn.parameters()`` to the optimiser, without weight decay; the learned parameter is ``loss_fn.logit_scale``.

    Args:
        init_scale: Inverse temperature at the start, at least 1.
        max_scale: Largest inverse temperature. The scale is clamped to $[1, \text{max scale}]$; at either end, only gradients
            that move the parameter back into the interval are kept.

    Raises:
        ValueError: ``init_scale`` or ``max_scale`` is below 1, or ``init_scale`` exceeds ``max_scale``.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("clip", init_scale=10.0)
        >>> images, texts = torch.randn(2, 8, 16)
        >>> loss_fn(images, texts).backward()
        >>> round(loss_fn.logit_scale.detach().exp().item(), 4), loss_fn.logit_scale.grad is not None
        (10.0, True)
    """

    def __init__(self, *, init_scale: float = 1 / 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        self.largest = torch.tensor(math.log(max_scale), device="cpu").item()  # rounded like the parameter

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore the scale that the constructor was given."""
        super().reset_parameters()
        self.logit_scale.fill_(math.log(self.init_scale))

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        return infonce(batch, temperature=(-within(self.logit_scale, 0, self.largest).to(batch.x.dtype)).exp())
