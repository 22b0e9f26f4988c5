r"""UCL: the generalised unsupervised loss. Each positive against the mean over all rows.

    loss = mean over pairs (i, j), j in P(i), of log(1 + mean_n exp(s_in - s_ij))       P(i): rows of the sample of i; n: all

Jiang, Nguyen, Aeron and Ishwar, "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural-
vs Dimensional-Collapse", 2023. arXiv:2311.05139
"""

from contrastive_zoo.objectives.generalised import DRAWS, EASY, OTHER_SAMPLES, PAPER, SCALE, Generalised, check_draws
from contrastive_zoo.registry import losses


@losses.register(
    "ucl",
    title="Generalised unsupervised contrastive loss",
    summary="Each positive against the mean over all rows, log(1 + mean) in place of a softmax.",
    paper=PAPER,
    equation=EASY,
    draws=True,
    check=check_draws,
    scale=SCALE,
    differences=(DRAWS, OTHER_SAMPLES),
)
class UCL(Generalised):
    r"""Loss of each anchor, (B, 2), weighted so the mean is over pairs of an anchor and a positive.

    $$\frac{1}{\sum_i |P(i)|} \sum_i \sum_{j \in P(i)}
      \log\Big(1 + \frac{1}{|N(i)|} \sum_{n \in N(i)} e^{s_{in} - s_{ij}}\Big)$$

    P(i) are the rows of the anchor's sample, including the anchor, and N(i) all rows.

    Args:
        num_negatives: None for the mean over all negatives; a number K for the mean over K draws per anchor, with
            replacement. `eval()` uses the mean over all negatives.
        self_positive: Whether an anchor is a positive of itself, as in the authors' code. If not, N(i) are the rows of other
            samples.
        seed: Random seed.

    Raises:
        ValueError: ``num_negatives`` is below 1.

    Examples:
        All rows are equal, so the mean equals the positive:

        >>> import math, torch
        >>> import contrastive_zoo as zoo
        >>> z = torch.ones(8, 4)
        >>> torch.allclose(zoo.get_loss("ucl")(z, z), torch.tensor(math.log(2)))
        True
    """

    def __init__(self, *, num_negatives: int | None = None, self_positive: bool = True, seed: int = 0) -> None:
        super().__init__(False, 0.0, num_negatives, self_positive, seed)
