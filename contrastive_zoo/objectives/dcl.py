r"""DCL: NT-Xent whose denominator leaves out the positive; DCLW: the same with weighted positives.

    l_a = -w_i s_ap/t + log sum_{b : id_b != id_a} exp(s_ab/t)        a, b over both views, w_i = 1 in DCL

Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, eq. 6. arXiv:2110.06848
"""

from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.registry import POSITIVE, losses


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


@losses.register(
    "dclw",
    title="Decoupled contrastive loss with weighted positives",
    summary="DCL whose distant positives pull harder and close ones less.",
    paper="Yeh et al., ECCV 2022, section 3. arXiv:2110.06848",
    equation=r"-w_i \frac{s_{ap}}{\tau} + \log \sum_{b:\,\mathrm{id}_b \ne \mathrm{id}_a} e^{s_{ab}/\tau},\quad "
    r"w_i = 2 - \frac{e^{s_{ap}/\sigma}}{\frac{1}{B}\sum_j e^{s_{jj}/\sigma}}",
    uses={"index", "negatives"},
    ranges={"sigma": POSITIVE},
    scale="Equal to lightly's DCLWLoss; the authors' code takes the anchors of one view only.",
    differences=("The weights are constants, as in lightly; in the authors' code gradient flows through them.",),
)
def dclw(batch: Batch, *, temperature: Tensor | float = 0.1, sigma: float = 0.5) -> Tensor:
    r"""Loss of each anchor, (B, 2).

    $$\ell_a = -w_i \frac{s_{ap}}{\tau} + \log \sum_{b : \mathrm{id}_b \ne \mathrm{id}_a} e^{s_{ab}/\tau}, \qquad
      w_i = 2 - B\, \mathrm{softmax}_i(s_{ii}/\sigma)$$

    Both views of a sample have one weight, a constant; over the batch weights average 1. A sample much better aligned than the
    others can have a negative one, which pushes its views apart.

    Args:
        batch: Rows of both views.
        temperature: Divides the similarities.
        sigma: Divides the similarities of the positives in the weights: the larger, the more alike the weights.

    Examples:
        Where all samples are aligned alike, this is DCL:

        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.randn(8, 4)
        >>> torch.allclose(zoo.get_loss("dclw")(z, z), zoo.get_loss("dcl")(z, z))
        True
    """
    positive = batch.positive_similarity()
    weight = 2 - batch.size * (positive.detach() / sigma).softmax(0)
    return batch.logsumexp(1 / temperature) - weight * positive / temperature
