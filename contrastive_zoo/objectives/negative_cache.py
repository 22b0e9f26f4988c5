r"""Negative cache: the contrastive loss over the whole dataset, with negatives drawn from a cache of stale embeddings.

    grad l_a = -grad s_ap/tau + 1/K sum_j [ sum_{l<j} q_l grad s_an_l + (1 - C_j) grad s_an_j ]/tau,    C_j = sum_{l<j} q_l

n_1, ..., n_K are draws without replacement from q = softmax(s_a/tau) over the cache, by Gumbel noise. The expectation over the
draws is exact for every K.

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
    summary="Contrasts with the whole dataset through negatives drawn from the softmax over a cache of last embeddings.",
    paper="Lindgren et al., NeurIPS 2021, sections 3 and 4; compared with in arXiv:2404.10575",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}, "
    r"\quad \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau} "
    r"+ \mathrm{E}_{n \sim \mathrm{softmax}(s_a/\tau)} \frac{\nabla s_{an}}{\tau}",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"num_negatives": Range(1)},
    scale="Same scale as sogclr and emc2; the code of EMC2's authors, which has this baseline, also weighs the positive by "
    "1 - C_1.",
    differences=(
        "The target leaves the positive out, as in all global objectives here; the authors' code has the query's similarity to "
        "itself in its place, and weighs draw j by 1 - C_j only.",
        "Without encode, negatives outside the batch are constants from the cache, and only the anchor gets a gradient; the "
        "authors' code always encodes them again.",
        "Training batches fill the cache, an embedding per sample and view; the authors refresh the cache in a separate pass.",
        "The value is exact over the cache; the authors return a surrogate that is only useful for its gradient.",
    ),
)
class NegativeCache(GlobalObjective):
    r"""Loss of each anchor, (B, 2); value and gradient are different estimates, joined.

    $$\ell_a = -\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau},
      \quad \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau}
      + \mathrm{E}_{n \sim \mathrm{softmax}(s_a/\tau)} \frac{\nabla s_{an}}{\tau}$$

    The gradient is estimated as

    $$\nabla \ell_a = -\frac{\nabla s_{ap}}{\tau}
      + \frac{1}{K} \sum_{j=1}^{K} \Big[\sum_{l<j} q_{n_l} \nabla s_{an_l} + (1 - C_j) \nabla s_{an_j}\Big] \Big/ \tau,
      \qquad C_j = \sum_{l<j} q_{n_l}$$

    with draws $n_1, \ldots, n_K$ without replacement from the softmax $q$ over the cache, without rows of the anchor's
    own sample and rows that no batch has filled yet. The value is $-s_{ap}/\tau$ plus the exact logarithm of the mean of
    $e^{s_{an}/\tau}$ over the cache.

    Without `encode`, negatives outside the batch are constants and get no gradient, so the expected gradient over batches is
    not exact, regardless of the number of draws. With `encode` and an up-to-date cache the expected gradient is exact.

    Each step multiplies the batch with the whole cache, tile by tile. In `eval()` the batch replaces the cache; the cache is
    neither read nor written, and no random numbers are drawn.

    Args:
        num_samples: Size of the dataset; the cache holds two embeddings of each.
        temperature: Divides the similarities.
        num_negatives: Number of draws per anchor, K.
        encode: A differentiable callable ``encode(index, view)`` that maps (n,) positions in the dataset and (n,) views, 0 or
            1, to features (n, D). It is called once per step for all draws outside the batch, each once, under the caller's
            autocast. These draws then get a gradient, like the anchors; without `encode` they are constants.
        embedding_dim: Features per embedding in the cache; by default taken from the first batch, or from a checkpoint.
        seed: Random seed.

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
