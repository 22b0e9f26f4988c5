r"""Spectral contrastive loss: views similar, the rows of other samples orthogonal.

    loss = -2 mean_i s_ii + r^2 mean_{i, j : id_i != id_j} s_ij^2        i in view 1, j in view 2

It is linear in the squares, which need no pairs: sum_ij s_ij^2 = <A^T A, B^T B>, in O(B D^2).

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
    summary="Similar views and orthogonal samples; costs no pairs.",
    paper="HaoChen et al., NeurIPS 2021, eq. 6. arXiv:2106.04156",
    equation=r"-2\,\mathrm{mean}_i\,s_{ii} + r^2\,\mathrm{mean}_{i,j:\,\mathrm{id}_i\ne\mathrm{id}_j}\,s_{ij}^2",
    ranges={"radius": POSITIVE},
    scale="Equal to the authors' code at mu = radius^2, where rows are no shorter than the radius.",
    differences=(
        "The authors shorten rows that are longer than the radius and keep the others; here all rows have this length, and "
        "normalize='ball' is theirs at radius 1.",
    ),
)
def spectral_contrastive(batch: Batch, *, radius: float = 1.0) -> Tensor:
    r"""Loss of each row of view 1, (B, 1).

    $$\ell_i = -2 s_{ii} + r^2 \frac{B}{P} \sum_{j : \mathrm{id}_j \ne \mathrm{id}_i} s_{ij}^2$$

    with P the number of pairs that are summed, B (B - 1) where all samples differ. For features f of length r these are the
    paper's $-2 f_i^\top f_i^+ + \mathrm{mean}_j\,(f_i^\top f_j^+)^2$ over $r^2$, as in the authors' code: the pull of the
    positives does not depend on the radius, and r weighs the push of the negatives.

    Args:
        batch: Rows of both views.
        radius: Length r that unit rows are stretched to; the authors' mu is its square.

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
    loss = weight * squares[:, None] - 2 * batch.positive_similarity()
    return torch.where(pairs > 0, loss, -torch.inf)
