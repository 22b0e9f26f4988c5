r"""SupCon: every row of the anchor's class is a positive, and all other rows are keys.

    l_a = -mean_{p in P_a} s_ap/tau + log sum_{b != a} exp(s_ab/tau)        P_a: other rows with the label of a, of all views

The mean over the positives is computed from sums of rows per class, without a pass over pairs of positives.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, eq. 2. arXiv:2004.11362
"""

import torch
from einops import rearrange
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.registry import losses


@losses.register(
    "supcon",
    title="Supervised contrastive loss",
    summary="Every row of the anchor's class is a positive; needs labels.",
    paper="Khosla et al., NeurIPS 2020, eq. 2. arXiv:2004.11362",
    equation=r"\ell_a = -\frac{1}{|\mathcal{P}_a|} \sum_{p \in \mathcal{P}_a} \frac{s_{ap}}{\tau} + "
    r"\log \sum_{b \ne a} e^{s_{ab}/\tau}",
    needs={"labels"},
    uses={"index", "views", "one_view"},
    ring=True,
    scale="Equal to pytorch-metric-learning's SupConLoss; the authors' code multiplies by temperature / 0.07.",
    differences=(
        "Rows with the same index are positives of each other regardless of their labels: the first row's label is used.",
        "pytorch-metric-learning returns 0 for a batch of one class, and leaves anchors whose loss is 0 out of the mean.",
    ),
)
def supcon(batch: Batch, *, temperature: Tensor | float = 0.1) -> Tensor:
    r"""Loss of each anchor, (B, V).

    $$\ell_a = -\frac{1}{|\mathcal{P}_a|} \sum_{p \in \mathcal{P}_a} \frac{s_{ap}}{\tau} +
      \log \sum_{b \ne a} e^{s_{ab}/\tau}$$

    $\mathcal{P}_a$ are all other rows with the label of a, of any view. Positives stay in the denominator: with n positives
    the loss is never below log n. With two views each anchor has a positive, its other view; an anchor that is alone in its
    class is treated as in NT-Xent. With one view, ``loss_fn(z, labels=labels)`` and z of shape (B, D), the positives are the
    other samples of the class, and an anchor that is alone in its class is left out of the mean. If all labels are equal the
    loss only makes the similarities uniform.

    Args:
        batch: Rows of all views, one or more, and labels.
        temperature: Divides the similarities.

    Examples:
        All rows are equal, so all 2B - 1 keys have the same similarity:

        >>> import math, torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.ones(8, 4)
        >>> loss = zoo.get_loss("supcon")(z, z, labels=torch.arange(8) % 3)
        >>> torch.allclose(loss, torch.tensor(math.log(15)))
        True

        One view; sample 2 is alone in its class, the others have two keys each:

        >>> loss = zoo.get_loss("supcon")(z[:3], labels=torch.tensor([5, 5, 7]))
        >>> torch.allclose(loss, torch.tensor(math.log(2)))
        True
    """
    keys = batch.per_view(batch.pairs.logsumexp(batch.x, scale=1 / temperature))
    total, count = _positives(batch)
    return torch.where((count > 0) & (batch.negatives_count() > 0), keys - total / count.clamp_min(1) / temperature, -torch.inf)


def _positives(batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of the similarities to the positives of each row, (B, views), and their number, (B, 1)."""
    rows = rearrange(batch.x, "(b v) d -> b v d", v=batch.views)
    classes = batch.placed(batch.class_ids())
    sums = batch.pairs.class_sums(rows.sum(1), classes)
    sizes = torch.zeros_like(classes).index_add_(0, classes, torch.ones_like(classes))[classes]
    return batch.of_all(torch.linalg.vecdot(rows, sums[:, None] - rows)), (sizes * batch.views - 1)[:, None]
