r"""Spectral contrastive loss: makes views similar and rows of different samples orthogonal.

    loss = -2 mean s_ap + r^2 mean s_an^2        a in view 1; p, n in view 2

The sum of squares needs no pass over pairs: for views X and Y, sum_ab s_ab^2 = <X^T X, Y^T Y>, in O(B D^2).

HaoChen et al., "Provable Guarantees for Self-Supervised Deep Learning with Spectral Contrastive Loss", NeurIPS 2021, eq. 6.
arXiv:2106.04156
"""

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.registry import POSITIVE, losses


@losses.register(
    "spectral_contrastive",
    title="Spectral contrastive loss",
    summary="Makes views similar and different samples orthogonal; cost is linear in the batch size.",
    paper="HaoChen et al., NeurIPS 2021, eq. 6. arXiv:2106.04156",
    equation=r"\ell_a = -2 s_{ap} + r^2\, \frac{B}{P} \sum_{n \in \mathcal{N}_a} s_{an}^2",
    ranges={"radius": POSITIVE},
    scale="Equal to the authors' code at mu = radius^2, if rows are no shorter than the radius.",
    differences=(
        "The authors shorten only rows that are longer than the radius; here all rows have length radius. "
        "normalize='ball' matches the authors' code at radius 1.",
    ),
)
def spectral_contrastive(batch: Batch, *, radius: float = 1.0) -> Tensor:
    r"""Loss of each row of view 1, (B, 1).

    $$\ell_a = -2 s_{ap} + r^2\, \frac{B}{P} \sum_{n \in \mathcal{N}_a} s_{an}^2$$

    B is the number of samples and P the number of pairs of rows of different samples, B (B - 1) if all samples differ. This is
    the paper's loss of features of length r, divided by $r^2$ as in the authors' code: r does not affect the attraction of the
    positives, and weighs the repulsion of the negatives.

    Args:
        batch: Rows of both views.
        radius: Length r that unit rows are scaled to; the authors' mu is $r^2$.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(4)
        >>> zoo.get_loss("spectral_contrastive")(z, z)
        tensor(-2.)
        >>> z = torch.ones(4, 4)
        >>> zoo.get_loss("spectral_contrastive", radius=2.0)(z, z)
        tensor(2.)
    """
    squares = batch.pairs.square_sum(*batch.each_view(), ids=batch.sample_ids)
    pairs = batch.negatives_count(views=1).sum()
    weight = radius**2 * batch.size / pairs.clamp_min(1).to(squares.dtype)
    losses = weight * squares[:, None] - 2 * batch.positive_similarity()
    return losses if batch.complete else torch.where(pairs > 0, losses, -torch.inf)
