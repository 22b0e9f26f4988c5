r"""InfoNCE: each row must identify its partner among the rows of the other view.

    l_a = -s_ap/tau + log( exp(s_ap/tau) + sum_{n in N_a} exp(s_an/tau) )        N_a: rows of other samples, in the other view

van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4. arXiv:1807.03748
"""

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.logspace import log1p_exp, logaddexp, minus_scaled
from contrastive_zoo.registry import losses


def _check(*, temperature: object, symmetric: bool, in_batch: bool) -> None:
    """Raise if some anchors can never have keys."""
    if symmetric and not in_batch:
        raise ValueError("in_batch=False leaves the anchors of z2 without keys: pass symmetric=False as well.")


@losses.register(
    "infonce",
    title="InfoNCE",
    summary="Softmax cross-entropy: find the partner among the rows of the other view and any extra negatives.",
    paper="van den Oord et al., 2018, eq. 4. arXiv:1807.03748",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + "
    r"\log\Big(e^{s_{ap}/\tau} + \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\Big)",
    uses={"index", "negatives"},
    ring=True,
    check=_check,
    scale="Equal to info-nce-pytorch with symmetric=False, and to open_clip's ClipLoss at temperature 1 / logit_scale.",
)
def infonce(batch: Batch, *, temperature: Tensor | float = 0.1, symmetric: bool = True, in_batch: bool = True) -> Tensor:
    r"""Loss of each anchor, (B, 2), or (B, 1) if not symmetric.

    $$\ell_a = -\frac{s_{ap}}{\tau} +
      \log\Big(e^{s_{ap}/\tau} + \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}\Big)$$

    Args:
        batch: Rows of both views; extra negatives are for the anchors of view 1.
        temperature: Divides the similarities.
        symmetric: Whether rows of view 2 are anchors too. One pass over the pairs computes both directions.
        in_batch: Whether the other view's rows are keys; if not, view 1 is contrasted with the extra negatives only, which
            requires ``symmetric=False``.

    Raises:
        ValueError: ``in_batch=False`` without negatives, or with ``symmetric=True``.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(4)
        >>> zoo.get_loss("infonce", temperature=1.0)(z, z)
        tensor(0.7437)
    """
    positive = batch.positive_similarity()
    if in_batch:
        negatives = _from_other_view(batch, 1 / temperature, symmetric)
        return batch.dropped(log1p_exp(minus_scaled(negatives, positive, temperature)), negatives)
    if batch.negatives is None:
        raise ValueError("in_batch=False leaves no keys: call loss_fn(z1, z2, negatives=negatives).")
    negatives = batch.extra_logsumexp(1 / temperature, views=1)
    return log1p_exp(minus_scaled(negatives, positive, temperature)).masked_fill(negatives == -torch.inf, -torch.inf)


def _from_other_view(batch: Batch, scale: Tensor | float, symmetric: bool) -> Tensor:
    """Log-sum-exp over the negatives in the other view, (B, 2) or (B, 1), plus the extra negatives for view 1."""
    (x, y), ids = batch.each_view(), batch.sample_ids
    if symmetric:
        rows, columns = batch.pairs.logsumexp_both(x, y, scale=scale, ids=ids, key_ids=ids)
    else:
        rows = batch.pairs.logsumexp(x, y, scale=scale, ids=ids, key_ids=ids)
    if batch.negatives is not None:
        rows = logaddexp(rows, batch.extra_logsumexp(scale, views=1)[:, 0])
    return torch.stack([rows, columns], 1) if symmetric else rows[:, None]
