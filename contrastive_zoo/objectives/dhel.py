r"""DHEL: aligns the two views, and spreads the samples within each view, without negatives across the views.

    l_a = -s_ap/tau + log sum_{n in N_a} exp(s_an/tau) + log sum_{n in N_p} exp(s_pn/tau)

a is the row of a sample in view 1, p its row in view 2; N_a and N_p are the rows of other samples in the same view.

Koromilas et al., "Bridging Mini-Batch and Asymptotic Analysis in Contrastive Learning", ICML 2024, eq. 7. arXiv:2405.18045
"""

from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.logspace import minus_scaled
from contrastive_zoo.registry import losses


@losses.register(
    "dhel",
    title="Decoupled hyperspherical energy loss",
    summary="Alignment of the views plus the energy within each view, without negatives across the views.",
    paper="Koromilas et al., ICML 2024. arXiv:2405.18045",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + \log \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}"
    r" + \log \sum_{n \in \mathcal{N}_p} e^{s_{pn}/\tau}",
    ring=True,
    scale="Equal to the authors' code: the sum of both energies, and the alignment once.",
)
def dhel(batch: Batch, *, temperature: Tensor | float = 0.3, both_views: bool = True) -> Tensor:
    r"""Loss of each sample, (B, 1).

    $$\ell_a = -\frac{s_{ap}}{\tau} + \log \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}
      + \log \sum_{n \in \mathcal{N}_p} e^{s_{pn}/\tau}$$

    Args:
        batch: Rows of both views.
        temperature: Divides the similarities.
        both_views: Whether the energy of view 2 counts too.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.eye(3)
        >>> zoo.get_loss("dhel", temperature=1.0)(z, z)
        tensor(0.3863)
    """
    views = batch.by_view() if both_views else batch.by_view()[:1]
    energies = batch.pairs.logsumexp(views, scale=1 / temperature, ids=batch.sample_ids)  # (2, B) or (1, B)
    return minus_scaled(energies.sum(0)[:, None], batch.positive_similarity(), temperature)
