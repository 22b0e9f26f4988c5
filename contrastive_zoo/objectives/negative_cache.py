r"""Negative cache: the contrastive loss over the whole dataset, with negatives drawn from a cache of stale embeddings.

    grad l_a = -grad s_ap/t + 1/K sum_j [ sum_{l<j} p_l grad s_{a n_l}/t + (1 - C_j) grad s_{a n_j}/t ],    C_j = sum_{l<j} p_l

n_1, ..., n_K are draws without replacement from p = softmax(s_a/t) over the cache, by Gumbel noise. The mean over draws is
exact for every K.

Lindgren et al., "Efficient Training of Retrieval Models using Negative Cache", NeurIPS 2021, sections 3 and 4.
"""

from torch import Tensor

from contrastive_zoo.objectives.sampled import GlobalObjective
from contrastive_zoo.registry import Range, losses
from contrastive_zoo.samplers import GumbelSampler
from contrastive_zoo.samplers.base import Encode


@losses.register(
    "negative_cache",
    title="Negative cache, Gumbel-max sampling over stale embeddings",
    summary="Contrasts with the last embeddings of the whole dataset through draws from their softmax.",
    paper="Lindgren et al., NeurIPS 2021, sections 3 and 4; compared with in arXiv:2404.10575",
    equation=r"-\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau},\quad"
    r"\text{gradient with } n_1, \ldots, n_K \sim \mathrm{softmax}(s_{a\cdot}/\tau)",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"num_negatives": Range(1)},
    scale="That of sogclr and emc2; EMC2's authors, whose code has this baseline, weigh the positive by 1 - C_1 besides.",
    differences=(
        "The target leaves the positive out, as all the global objectives here do; theirs has the query's similarity to itself"
        " in its place, and weighs draw j by 1 - C_j alone.",
        "Negatives outside of the batch stay as they were last seen and pull on the anchor only, unless encode is given; theirs"
        " are always encoded anew.",
        "The cache is filled by training batches, an embedding per sample and view; theirs is refreshed by a pass of its own.",
        "The value is exact over the cache; theirs is a surrogate for the gradient alone.",
    ),
)
class NegativeCache(GlobalObjective):
    r"""Loss of each anchor, (B, 2); value and gradient are different estimates, joined.

    $$\nabla \ell_a = -\frac{\nabla s_{ap}}{\tau}
      + \frac{1}{K} \sum_{j=1}^{K} \Big[\sum_{l<j} p_{n_l} \nabla s_{an_l} + (1 - C_j) \nabla s_{an_j}\Big] \Big/ \tau,
      \qquad C_j = \sum_{l<j} p_{n_l}$$

    with draws n without replacement from the softmax p over the cache, rows of the own sample and rows that no batch has
    brought yet left out. The value is $-s_{ap}/\tau$ plus the exact logarithm of the mean of $e^{s/\tau}$ over the cache.

    Without `encode`, negatives outside of the batch are constants, and the gradient lacks the push on them: its mean over
    batches is then not the exact one, however many draws there are. With `encode` and a fresh cache it is.

    Each step costs the product of the batch with the whole cache, which is visited in tiles. In `eval()` the batch takes the
    place of the cache; nothing is read, written or drawn.

    Args:
        num_samples: Size of the dataset; the cache holds two embeddings of each.
        temperature: Divides the similarities.
        num_negatives: K.
        encode: A callable ``encode(index, view)`` from (n,) positions in the dataset and (n,) views, 0 or 1, to features
            (n, D), differentiable: called once per step for all draws outside of the batch, each once, in the autocast state of
            the caller. They then get gradient, as the anchors do; without it they are constants.
        embedding_dim: Features of an embedding in the cache; by default those of the first batch, or of a checkpoint.
        seed: Seed of the draws.

    Raises:
        ValueError: A parameter is out of range.
        TypeError: ``num_negatives`` is not whole, or ``encode`` cannot be called.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("negative_cache", num_samples=100, num_negatives=4)
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> loss = loss_fn(z1, z2, index=torch.arange(8))
        >>> int(loss_fn.table()["visited"].sum())
        8
    """

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float | Tensor = 0.1,
        num_negatives: int = 16,
        encode: Encode | None = None,
        embedding_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        sampler = GumbelSampler(
            num_samples=num_samples, num_negatives=num_negatives, encode=encode, embedding_dim=embedding_dim, seed=seed
        )
        super().__init__(sampler, temperature)
