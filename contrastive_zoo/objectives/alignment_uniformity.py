r"""Alignment and uniformity: two separate terms, one for close views, one for samples spread evenly over the sphere.

    loss = mean d_ap^alpha + weight/2 ( log mean exp(-t d_an^2) + log mean exp(-t d_pn^2) )

The first mean is over samples, with rows a in view 1 and p in view 2; the others are over pairs of samples within a view.
On unit rows d^2 = 2 - 2 s, so the logarithms are log-sum-exps at scale 2t.

Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
ICML 2020, sec. 4. arXiv:2005.10242
"""

from dataclasses import replace

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.logspace import masked_logsumexp
from contrastive_zoo.pairwise.kernels import rounding_bound
from contrastive_zoo.registry import POSITIVE, Range, losses


@losses.register(
    "alignment_uniformity",
    title="Alignment and uniformity",
    summary="Mean distance of the views plus the logarithm of the mean Gaussian potential of each view.",
    paper="Wang and Isola, ICML 2020, sec. 4. arXiv:2005.10242",
    equation=r"\ell = \mathrm{mean}_a\,d_{ap}^{\alpha}"
    r" + \frac{w}{2} \log \mathrm{mean}_{a,\,n \in \mathcal{N}_a}\,e^{-t d_{an}^2}"
    r" + \frac{w}{2} \log \mathrm{mean}_{a,\,n \in \mathcal{N}_p}\,e^{-t d_{pn}^2}",
    per_sample=False,
    ranges={"alpha": POSITIVE, "t": POSITIVE, "weight": Range(0)},
    scale="The authors' formula; no number of the authors' code is recorded.",
    differences=(
        "Views closer than their rounding error, (D + 32) eps times their length (1.9e-5 for unit rows of 128 features in "
        "float32), have distance 0 and no gradient: for alpha < 1 the gradient would be huge, and infinite for equal views.",
    ),
)
def alignment_uniformity(batch: Batch, *, alpha: float = 2.0, t: float = 2.0, weight: float = 1.0) -> Tensor:
    r"""The loss of the batch, one number.

    $$\ell = \mathrm{mean}_a\,d_{ap}^{\alpha} + \frac{w}{2} \log \mathrm{mean}_{a,\,n \in \mathcal{N}_a}\,e^{-t d_{an}^2}
      + \frac{w}{2} \log \mathrm{mean}_{a,\,n \in \mathcal{N}_p}\,e^{-t d_{pn}^2}$$

    Args:
        batch: Rows of both views.
        alpha: Power of the distance between the views of a sample.
        t: Sharpness of the Gaussian potential: larger values emphasise the nearest neighbours.
        weight: Weight of the uniformity.

    Examples:
        The squared distance between two orthonormal samples is 2:

        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(4)
        >>> zoo.get_loss("alignment_uniformity")(z, z)
        tensor(-4.)
    """
    alignment = _alignment(batch, alpha)
    pairs = batch.negatives_count(views=1).sum()
    potentials = _log_potentials(batch, t).mean()
    uniformity = torch.where(pairs > 0, potentials - pairs.clamp_min(1).to(potentials.dtype).log(), 0)
    batch.diagnostics["alignment"], batch.diagnostics["uniformity"] = alignment.detach(), uniformity.detach()
    return torch.where(pairs > 0, alignment + weight * uniformity, 0)


def _alignment(batch: Batch, alpha: float) -> Tensor:
    """Mean power of the distance between the views of a sample."""
    a, b = batch.each_view()
    squares = (a - b).square().sum(1)
    apart = squares > rounding_bound(a) ** 2 * (a.square().sum(1) + b.square().sum(1)).detach() / 2
    return torch.where(apart, torch.where(apart, squares, 1).pow(alpha / 2), 0).mean()


def _log_potentials(batch: Batch, t: float) -> Tensor:
    """(2,) logarithm of the sum of exp(-t d^2) over ordered pairs of samples of each view."""
    if batch.pairs.unit_rows:
        return masked_logsumexp(batch.pairs.logsumexp(batch.by_view(), scale=2 * t, ids=batch.sample_ids)) - 2 * t
    return torch.stack([_log_potential(batch, rows, t) for rows in batch.each_view()])


def _log_potential(batch: Batch, rows: Tensor, t: float) -> Tensor:
    """Logarithm of the sum of exp(-t d^2) over ordered pairs of samples of one view, for rows of any length."""
    ids = batch.sample_ids
    # -t |x - k|^2 = 4t <(x, 1), (k, -|k|^2/2)> / 2 - t |x|^2; dividing by sqrt(2) keeps them in the unit ball.
    squares = rows.square().sum(1, keepdim=True)
    anchors, keys = (torch.cat([rows, extra], 1) / 2**0.5 for extra in (torch.ones_like(squares), -squares / 2))
    pairs = replace(batch.pairs, operand=None)  # half precision is too coarse for the squares
    sums = pairs.logsumexp(anchors, keys, scale=4 * t, ids=ids, key_ids=ids)
    return masked_logsumexp(sums - t * squares[:, 0])
