r"""NT-Xent: each row must identify its other view among all other rows of the batch.

    l_a = -s_ap/tau + log( exp(s_ap/tau) + sum_{n in N_a} exp(s_an/tau) )        N_a: rows of other samples, in all views

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1. arXiv:2002.05709
"""

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.logspace import log1p_exp, minus_scaled
from contrastive_zoo.registry import losses


@losses.register(
    "ntxent",
    aliases=("simclr",),
    title="NT-Xent, the loss of SimCLR",
    summary="Softmax cross-entropy: find the other view among all other rows of the batch.",
    paper="Chen et al., ICML 2020, eq. 1. arXiv:2002.05709",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + "
    r"\log\Big(e^{s_{ap}/\tau} + \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\Big)",
    uses={"index", "negatives", "views"},
    ring=True,
    scale="Equal to lightly's and pytorch-metric-learning's NTXentLoss.",
)
def ntxent(batch: Batch, *, temperature: Tensor | float = 0.1) -> Tensor:
    r"""Loss of each anchor, (B, V).

    $$\ell_a = -\frac{s_{ap}}{\tau} +
      \log\Big(e^{s_{ap}/\tau} + \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\Big)$$

    Args:
        batch: Rows of all views. With more than two views, the loss of an anchor is the mean over its positives p; the
            denominator for p holds p and the negatives, but no other positives.
        temperature: Divides the similarities; smaller values put more weight on similar negatives.

    Examples:
        All rows are equal, so all 2B - 1 keys have the same similarity:

        >>> import math, torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.ones(8, 4)
        >>> loss = zoo.get_loss("ntxent")(z, z)
        >>> torch.allclose(loss, torch.tensor(math.log(15)))
        True
    """
    negatives = batch.logsumexp(1 / temperature)
    terms = [log1p_exp(minus_scaled(negatives, positive, temperature)) for positive in batch.positives()]
    loss = terms[0] if len(terms) == 1 else torch.stack(terms).mean(0)
    return batch.dropped(loss, negatives)
