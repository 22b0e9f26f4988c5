r"""HSCL: SCL with negatives similar to the anchor weighted up.

    loss = mean over pairs (a, p) of log(1 + mean_{n in N_a} exp(s_an - s_ap)),       weight of n in the mean: exp(beta s_an)

Jiang, Nguyen, Aeron and Ishwar, "Hard-Negative Sampling for Contrastive Learning: Optimal Representation Geometry and Neural-
vs Dimensional-Collapse", 2023. arXiv:2311.05139
"""

from contrastive_zoo.objectives.generalised import DRAWS, HARD, ONE_LABEL, OTHERS, PAPER, SCALE, Generalised, check_draws
from contrastive_zoo.registry import Range, losses


@losses.register(
    "hscl",
    title="Generalised supervised contrastive loss with hard negatives",
    summary="SCL with negatives similar to the anchor weighted up.",
    paper=PAPER,
    equation=HARD,
    needs={"labels"},
    uses={"index", "one_view"},
    draws=True,
    ring=True,
    ranges={"beta": Range(0)},
    check=check_draws,
    scale=SCALE,
    differences=(DRAWS, OTHERS, ONE_LABEL),
)
class HSCL(Generalised):
    r"""Loss of each anchor, (B, V), weighted so the mean is over pairs of an anchor and a positive; `SCL` for beta = 0.

    $$\ell = \mathrm{mean}_{a,\,p \in \mathcal{P}_a}
      \log\Big(1 + \frac{\sum_{n \in \mathcal{N}_a} e^{(1+\beta) s_{an}}}
      {\sum_{n \in \mathcal{N}_a} e^{\beta s_{an}}}\, e^{-s_{ap}}\Big)$$

    $\mathcal{P}_a$ are the rows with the anchor's label, including the anchor, and $\mathcal{N}_a$ the rows with other labels.
    The weights $e^{\beta s_{an}}$ are detached. Takes two views, or one: ``loss_fn(z, labels=labels)`` with z of shape (B, D).

    Args:
        beta: Strength of the weight on hard negatives, at least 0.
        num_negatives: None for the weighted mean over all negatives; a number K for the mean over K draws of each anchor, with
            probabilities proportional to the weights, with replacement. `eval()` uses the weighted mean.
        self_positive: Whether an anchor is a positive of itself, as in the authors' code.
        seed: Random seed.

    Raises:
        ValueError: ``beta`` is negative or ``num_negatives`` below 1.

    Examples:
        The loss is never smaller than with ``beta=0``:

        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> (z1, z2), labels = torch.randn(2, 8, 4), torch.arange(8) % 3
        >>> bool(zoo.get_loss("hscl", beta=5.0)(z1, z2, labels=labels) >= zoo.get_loss("scl")(z1, z2, labels=labels))
        True

        This also holds with one view of each sample:

        >>> bool(zoo.get_loss("hscl", beta=5.0)(z1, labels=labels) >= zoo.get_loss("scl")(z1, labels=labels))
        True
    """

    def __init__(
        self, *, beta: float = 1.0, num_negatives: int | None = None, self_positive: bool = True, seed: int = 0
    ) -> None:
        super().__init__(True, beta, num_negatives, self_positive, seed)
