r"""DCL: NT-Xent whose denominator leaves out the positive.

    l_a = -s_ap/t + log sum_{b : id_b != id_a} exp(s_ab/t)        a, b over both views

Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, eq. 6. arXiv:2110.06848
"""

from torch import Tensor

from contrastive_zoo.batch import Batch
from contrastive_zoo.registry import losses


@losses.register(
    "dcl",
    title="Decoupled contrastive loss",
    summary="NT-Xent without the positive in the denominator, so that easy positives keep their gradient.",
    paper="Yeh et al., ECCV 2022, eq. 6. arXiv:2110.06848",
    equation=r"-\frac{s_{ap}}{\tau} + \log \sum_{b:\,\mathrm{id}_b \ne \mathrm{id}_a} e^{s_{ab}/\tau}",
    uses={"index", "negatives", "views"},
    scale="Equal to lightly's DCLLoss; the authors' code takes the anchors of one view only.",
    differences=("Both views are anchors; the authors' code asks for the loss of each view by itself.",),
)
def dcl(batch: Batch, *, temperature: Tensor | float = 0.1) -> Tensor:
    r"""Loss of each anchor, (B, V).

    $$\ell_a = -s_{ap}/\tau + \log \sum_{b : \mathrm{id}_b \ne \mathrm{id}_a} e^{s_{ab}/\tau}$$

    Args:
        batch: Rows of all views. With more than two, $s_{ap}$ is the mean over the positives.
        temperature: Divides the similarities.

    Examples:
        All rows equal, so that the 2B - 2 keys are alike:

        >>> import math, torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.ones(8, 4)
        >>> loss = zoo.get_loss("dcl")(z, z)
        >>> torch.allclose(loss, torch.tensor(math.log(14)))
        True
    """
    return batch.logsumexp(1 / temperature) - batch.positive_similarity() / temperature
