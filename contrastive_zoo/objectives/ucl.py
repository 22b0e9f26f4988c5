r"""UCL: the generalised unsupervised loss. Each positive against the mean over all rows.

    loss = mean over pairs (a, p) of log(1 + mean_{n in N_a} exp(s_an - s_ap))       p: rows of the sample of a; N_a: all rows

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
    ring=True,
    check=check_draws,
    scale=SCALE,
    differences=(DRAWS, OTHER_SAMPLES),
)
class UCL(Generalised):
    r"""Loss of each anchor, (B, 2), weighted so the mean is over pairs of an anchor and a positive.

    $$\ell = \mathrm{mean}_{a,\,p \in \mathcal{P}_a}
      \log\Big(1 + \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an} - s_{ap}}\Big)$$

    $\mathcal{P}_a$ are the rows of the anchor's sample, including the anchor, and $\mathcal{N}_a$ all rows.

    Args:
        num_negatives: None for the mean over all negatives; a number K for the mean over K draws per anchor, with
            replacement. `eval()` uses the mean over all negatives.
        self_positive: Whether an anchor is a positive of itself, as in the authors' code. If not, the negatives are the
            rows of other samples.
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
