r"""DCL: NT-Xent without the positive in the denominator; DCLW: DCL with weighted positives.

    l_a = -w_a s_ap/tau + log sum_{n in N_a} exp(s_an/tau)        N_a: rows of other samples, in all views; w_a = 1 in DCL

Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, eq. 6. arXiv:2110.06848
"""

from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.logspace import minus_scaled
from contrastive_zoo.registry import POSITIVE, losses


@losses.register(
    "dcl",
    title="Decoupled contrastive loss",
    summary="NT-Xent without the positive in the denominator, so easy positives do not shrink the gradient.",
    paper="Yeh et al., ECCV 2022, eq. 6. arXiv:2110.06848",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + \log \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}",
    uses={"index", "negatives", "views"},
    ring=True,
    scale="Equal to lightly's DCLLoss; the authors' code uses anchors of one view only.",
    differences=("Both views are anchors; the authors' code computes the loss of each view in a separate call.",),
)
def dcl(batch: Batch, *, temperature: Tensor | float = 0.1) -> Tensor:
    r"""Loss of each anchor, (B, V).

    $$\ell_a = -\frac{s_{ap}}{\tau} + \log \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}$$

    Args:
        batch: Rows of all views. With more than two, $s_{ap}$ is the mean over the positives.
        temperature: Divides the similarities.

    Examples:
        All rows are equal, so all 2B - 2 keys have the same similarity:

        >>> import math, torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.ones(8, 4)
        >>> loss = zoo.get_loss("dcl")(z, z)
        >>> torch.allclose(loss, torch.tensor(math.log(14)))
        True
    """
    return minus_scaled(batch.logsumexp(1 / temperature), batch.positive_similarity(), temperature)


@losses.register(
    "dclw",
    title="Decoupled contrastive loss with weighted positives",
    summary="DCL with distant positives weighted up and close positives weighted down.",
    paper="Yeh et al., ECCV 2022, section 3. arXiv:2110.06848",
    equation=r"\ell_a = -w_a \frac{s_{ap}}{\tau} + \log \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}, "
    r"\quad w_a = 2 - B\,\mathrm{softmax}_a(s_{ap}/\sigma)",
    uses={"index", "negatives"},
    ring=True,
    ranges={"sigma": POSITIVE},
    scale="Equal to lightly's DCLWLoss; the authors' code uses anchors of one view only.",
    differences=("The weights are detached, as in lightly; in the authors' code gradients flow through the weights.",),
)
def dclw(batch: Batch, *, temperature: Tensor | float = 0.1, sigma: float = 0.5) -> Tensor:
    r"""Loss of each anchor, (B, 2).

    $$\ell_a = -w_a \frac{s_{ap}}{\tau} + \log \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau},
      \quad w_a = 2 - B\,\mathrm{softmax}_a(s_{ap}/\sigma)$$

    Both views of a sample share one weight, which is detached; the weights of a batch average 1. The weight of a sample that is
    much better aligned than the others can be negative, which pushes its views apart.

    Args:
        batch: Rows of both views.
        temperature: Divides the similarities.
        sigma: Divides the similarities of the positives in the weights; larger values make the weights more uniform.

    Examples:
        If all samples are equally aligned, this is DCL:

        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.randn(8, 4)
        >>> torch.allclose(zoo.get_loss("dclw")(z, z), zoo.get_loss("dcl")(z, z))
        True
    """
    positive = batch.positive_similarity()
    weight = 2 - batch.size * (positive.detach() / sigma).softmax(0)
    return minus_scaled(batch.logsumexp(1 / temperature), weight * positive, temperature)
