r"""Spectral contrastive loss: makes views similar and rows of different samples orthogonal.

    loss = -2 mean_i s_ii + r^2 mean_{i, j : id_i != id_j} s_ij^2        i in view 1, j in view 2

The sum of squares needs no pass over pairs: sum_ij s_ij^2 = <A^T A, B^T B>, in O(B D^2).

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
    equation=r"-2\,\mathrm{mean}_i\,s_{ii} + r^2\,\mathrm{mean}_{i,j:\,\mathrm{id}_i\ne\mathrm{id}_j}\,s_{ij}^2",
    ranges={"radius": POSITIVE},
    scale="Equal to the authors' code at mu = radius^2, if rows are no shorter than the radius.",
    differences=(
        "The authors shorten only rows that are longer than the radius; here all rows have length radius. "
        "normalize='ball' matches the authors' code at radius 1.",
    ),
)
def spectral_contrastive(batch: Batch, *, radius: float = 1.0) -> Tensor:
    r"""Loss of each row of view 1, (B, 1).

    $$\ell_i = -2 s_{ii} + r^2 \frac{B}{P} \sum_{j : \mathrm{id}_j \ne \mathrm{id}_i} s_{ij}^2$$

    with P the number of pairs in the sum, B (B - 1) if all samples differ. For features f of length r the loss is the
    paper's $-2 f_i^\top f_i^+ + \mathrm{mean}_j\,(f_i^\top f_j^+)^2$ divided by $r^2$, as in the authors' code: r does not
    affect the attraction of the positives, and weighs the repulsion of the negatives.

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
