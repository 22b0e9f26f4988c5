r"""SCL: the generalised supervised loss. Each row of the anchor's class against the mean over the rows of other classes.

    loss = mean over pairs (a, p) of log(1 + mean_{n in N_a} exp(s_an - s_ap))        p: rows of the class of a; N_a: other rows

Jiang, Nguyen, Aeron and Ishwar, "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural-
vs Dimensional-Collapse", 2023. arXiv:2311.05139
"""

from contrastive_zoo.objectives.generalised import DRAWS, EASY, ONE_LABEL, OTHERS, PAPER, SCALE, Generalised, check_draws
from contrastive_zoo.registry import losses


@losses.register(
    "scl",
    title="Generalised supervised contrastive loss",
    summary="Each row of the anchor's class against the mean over the rows of other classes.",
    paper=PAPER,
    equation=EASY,
    needs={"labels"},
    uses={"index", "one_view"},
    draws=True,
    ring=True,
    check=check_draws,
    scale=SCALE,
    differences=(DRAWS, OTHERS, ONE_LABEL),
)
class SCL(Generalised):
    r"""Loss of each anchor, (B, V), weighted so the mean is over pairs of an anchor and a positive.

    $$\ell = \mathrm{mean}_{a,\,p \in \mathcal{P}_a}
      \log\Big(1 + \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an} - s_{ap}}\Big)$$

    $\mathcal{P}_a$ are the rows with the anchor's label, including the anchor, and $\mathcal{N}_a$ the rows with other labels.
    The cost of the positives is the sum of the squared class sizes.

    Takes two views, or one: ``loss_fn(z, labels=labels)`` with z of shape (B, D), as the authors train. With one view, an
    anchor that is alone in its class is its own only positive; with ``self_positive=False`` the anchor is left out.

    Args:
        num_negatives: None for the mean over all negatives; a number K for the mean over K draws per anchor, with
            replacement. `eval()` uses the mean over all negatives.
        self_positive: Whether an anchor is a positive of itself, as in the authors' code.
        seed: Random seed.

    Raises:
        ValueError: ``num_negatives`` is below 1.

    Examples:
        Two classes at opposite points:

        >>> import math, torch
        >>> import contrastive_zoo as zoo
        >>> labels = torch.tensor([0, 1, 1])
        >>> z = torch.tensor([[1.0], [-1.0], [-1.0]])
        >>> torch.allclose(zoo.get_loss("scl")(z, z, labels=labels), torch.tensor(math.log1p(math.exp(-2))))
        True

        One view of each sample gives the same value here:

        >>> torch.allclose(zoo.get_loss("scl")(z, labels=labels), torch.tensor(math.log1p(math.exp(-2))))
        True
    """

    def __init__(self, *, num_negatives: int | None = None, self_positive: bool = True, seed: int = 0) -> None:
        super().__init__(True, 0.0, num_negatives, self_positive, seed)
