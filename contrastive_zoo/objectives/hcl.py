r"""HCL: NT-Xent with negatives debiased and weighted by hardness; without the weights, the debiased loss.

    l_a = log(1 + G_a / exp(s_ap/tau)),    G_a = max( N (R_a - tau_plus exp(s_ap/tau)) / (1 - tau_plus),  N exp(-1/tau) )

where R_a is the mean of exp(s/tau) over the N negatives, weighted by exp(beta s/tau): hard negatives count more. In log space
log R_a = lse((1+beta)/tau) - lse(beta/tau), both from one pass over the pairs.

Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021, eq. 4. arXiv:2010.04592
Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020, eq. 8. arXiv:2007.00224
"""

import math

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import as_tensor
from contrastive_zoo.logspace import log1p_exp
from contrastive_zoo.registry import Range, losses

TAU_PLUS = Range(0, 1, open_high=True)
FLOOR = (
    "Computed in log space. The floor N exp(-1/tau) is the authors'; anchors at the floor get a gradient through the positive "
    "only, and diagnostics report their fraction."
)


@losses.register(
    "hcl",
    title="Contrastive learning with hard negatives",
    summary="NT-Xent with debiased negatives; harder negatives weigh more.",
    paper="Robinson et al., ICLR 2021, eq. 4. arXiv:2010.04592",
    equation=r"\ell_a = \log\big(1 + G_a\, e^{-s_{ap}/\tau}\big), "
    r"\quad G_a = \max\Big(N\, \frac{R_a - \tau^{+} e^{s_{ap}/\tau}}{1 - \tau^{+}},\ N e^{-1/\tau}\Big), "
    r"\quad R_a = \frac{\sum_{n \in \mathcal{N}_a} e^{(1+\beta) s_{an}/\tau}}"
    r"{\sum_{n \in \mathcal{N}_a} e^{\beta s_{an}/\tau}}",
    uses={"index", "negatives"},
    ring=True,
    ranges={"tau_plus": TAU_PLUS, "beta": Range(0)},
    scale="Equal to the authors' code.",
    differences=(FLOOR,),
)
def hcl(batch: Batch, *, temperature: Tensor | float = 0.5, tau_plus: float = 0.1, beta: float = 1.0) -> Tensor:
    r"""Loss of each anchor, (B, 2).

    $$\ell_a = \log\big(1 + G_a\, e^{-s_{ap}/\tau}\big),
      \quad G_a = \max\Big(N\, \frac{R_a - \tau^{+} e^{s_{ap}/\tau}}{1 - \tau^{+}},\ N e^{-1/\tau}\Big),
      \quad R_a = \frac{\sum_{n \in \mathcal{N}_a} e^{(1+\beta) s_{an}/\tau}}
      {\sum_{n \in \mathcal{N}_a} e^{\beta s_{an}/\tau}}$$

    Args:
        batch: Rows of both views.
        temperature: Divides the similarities.
        tau_plus: Probability that a negative is a positive, in [0, 1).
        beta: Strength of the weight on hard negatives, at least 0.

    Examples:
        Without debiasing and weights this is NT-Xent:

        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> hcl = zoo.get_loss("hcl", temperature=0.5, tau_plus=0.0, beta=0.0)
        >>> torch.allclose(hcl(z1, z2), zoo.get_loss("ntxent", temperature=0.5)(z1, z2))
        True
    """
    if beta == 0:
        count = batch.negatives_count().to(batch.x.dtype).log()
        return _debiased(batch, batch.logsumexp(1 / temperature) - count, temperature, tau_plus)
    scales = ((1 + beta) / temperature, beta / temperature)
    weighted, weights = batch.logsumexp(scales)
    return _debiased(batch, weighted - weights, temperature, tau_plus)


@losses.register(
    "debiased",
    title="Debiased contrastive loss",
    summary="NT-Xent corrected for negatives that belong to the anchor's own class.",
    paper="Chuang et al., NeurIPS 2020, eq. 8. arXiv:2007.00224",
    equation=r"\ell_a = \log\big(1 + G_a\, e^{-s_{ap}/\tau}\big), "
    r"\quad G_a = \max\Big(N\, \frac{R_a - \tau^{+} e^{s_{ap}/\tau}}{1 - \tau^{+}},\ N e^{-1/\tau}\Big), "
    r"\quad R_a = \frac{1}{N} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}",
    uses={"index", "negatives"},
    ring=True,
    ranges={"tau_plus": TAU_PLUS},
    scale="Equal to the code of arXiv:2010.04592 at beta = 0.",
    differences=(FLOOR,),
)
def debiased(batch: Batch, *, temperature: Tensor | float = 0.5, tau_plus: float = 0.1) -> Tensor:
    r"""Loss of each anchor, (B, 2): `hcl` with beta = 0.

    $$\ell_a = \log\big(1 + G_a\, e^{-s_{ap}/\tau}\big),
      \quad G_a = \max\Big(N\, \frac{R_a - \tau^{+} e^{s_{ap}/\tau}}{1 - \tau^{+}},\ N e^{-1/\tau}\Big),
      \quad R_a = \frac{1}{N} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}$$

    Args:
        batch: Rows of both views.
        temperature: Divides the similarities.
        tau_plus: Probability that a negative is a positive, in [0, 1).

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(4)
        >>> zoo.get_loss("debiased", temperature=1.0, tau_plus=0.0)(z, z)
        tensor(1.1654)
    """
    return hcl(batch, temperature=temperature, tau_plus=tau_plus, beta=0.0)


def _debiased(batch: Batch, log_mean: Tensor, temperature: Tensor | float, tau_plus: float) -> Tensor:
    """Loss from the logarithm of the (weighted) mean R over the negatives of each anchor, (B, 2)."""
    positive = batch.positive_similarity() / temperature
    count = batch.negatives_count()
    floor = -1 / as_tensor(temperature)
    log_negatives = _log_debiased(log_mean, positive, tau_plus)
    clamped = log_negatives <= floor
    log_negatives = torch.where(clamped, floor, log_negatives) + count.to(log_negatives.dtype).log()
    batch.diagnostics["clamped_anchors"] = clamped.detach().float().mean()
    return torch.where(count > 0, log1p_exp(log_negatives - positive), -torch.inf)


def _log_debiased(log_mean: Tensor, positive: Tensor, tau_plus: float) -> Tensor:
    """log((R - tau_plus P) / (1 - tau_plus)) from log R and log P; -inf, without gradient, if the argument is not positive."""
    if tau_plus == 0:
        return log_mean
    log_share = math.log(tau_plus) + positive - log_mean
    left_over = log_share < 0
    # log(1 - share), exact for shares near 0 and near 1; the value -1 keeps the gradient of the unused branch finite.
    log_rest = (-torch.where(left_over, log_share, -1).expm1()).log()
    return torch.where(left_over, log_mean + log_rest - math.log1p(-tau_plus), -torch.inf)
