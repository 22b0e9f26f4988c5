"""The sampler "gumbel": draws from the softmax over a table of last embeddings, by Gumbel noise."""

import torch
from torch import Tensor

from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.base import Encode
from contrastive_zoo.samplers.randomness import step_seed
from contrastive_zoo.samplers.stored import Stored
from contrastive_zoo.samplers.table import Draws, TableSampler, log_count


@samplers.register(
    "gumbel",
    title="Gumbel-max draws from the table",
    summary="Draws without replacement from softmax(s / temperature) over the whole dataset, weighed to be unbiased.",
    paper="Lindgren et al., NeurIPS 2021, sections 3 and 4; Des Raj, JASA 1956 (weights). arXiv:2110.15738",
    equation=r"n_1, \ldots, n_K = \operatorname{arg\,top}_K \left(s_{an}/\tau + g_{an}\right), \quad "
    r"w_l = \frac{1 - \sum_{m<l} p_{n_m} + (K - l)\,p_{n_l}}{K}",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"num_negatives": Range(1)},
)
class GumbelSampler(TableSampler):
    r"""K draws without replacement from softmax(s / temperature) over the table of last embeddings, with unbiased weights.

    $$n_1, \ldots, n_K = \operatorname{arg\,top}_K \left(s_{an}/\tau + g_{an}\right), \qquad
      w_l = \frac{1 - \sum_{m<l} p_{n_m} + (K - l)\,p_{n_l}}{K}$$

    with independent Gumbel noise g and p the exact softmax over the table; see `des_raj_weights`. For every K, the weighted
    mean of any function is an unbiased estimate of its mean under p. `log_mean` is exact over the table.

    Args:
        num_samples: Size of the dataset.
        num_negatives: Number of draws per anchor, K.
        encode: See `TableSampler`.
        embedding_dim: See `TableSampler`.
        seed: Random seed.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("gumbel", num_samples=100, num_negatives=8).law
        'softmax(s / temperature) over all rows of other samples'
    """

    law = "softmax(s / temperature) over all rows of other samples"

    def __init__(
        self,
        *,
        num_samples: int,
        num_negatives: int = 16,
        encode: Encode | None = None,
        embedding_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_samples=num_samples, num_negatives=num_negatives, encode=encode, embedding_dim=embedding_dim, seed=seed
        )

    def draw(self, x: Tensor, scale: Tensor, samples: Tensor, stored: Stored, anchors: slice) -> Draws:
        """See `TableSampler.draw`."""
        seed = step_seed(self.seed, self.step.value)
        found = stored.largest(x, scale, samples, self.num_negatives, seed, anchors)
        shift = torch.where(found.log_sum == -torch.inf, 0, found.log_sum)
        weights = des_raj_weights(found.log_scores - shift[:, None])
        return Draws(found.rows, weights, found.log_sum - log_count(found))


def des_raj_weights(log_probabilities: Tensor) -> Tensor:
    r"""Weights of draws without replacement that make their weighted mean unbiased.

    Term j of Des Raj's estimator is $t_j = \sum_{l<j} p_l f_l + (1 - C_j) f_j$ with $C_j = \sum_{l<j} p_l$: earlier draws
    count with their own probability, and draw j represents all remaining rows. The conditional expectation of term j, given the
    earlier draws, is the exact mean. The average of K such terms weighs draw l by

    $$w_l = \frac{1 - C_l + (K - l)\,p_l}{K}.$$

    Args:
        log_probabilities: (N, K) log probability of each drawn row under p, in the order of the draws; -inf if no row was
            left to draw.

    Returns:
        (N, K) weights that sum to 1; 0 if no row was left to draw.

    Examples:
        >>> import torch
        >>> des_raj_weights(torch.tensor([[0.5, 0.25]]).log())
        tensor([[0.7500, 0.2500]])
    """
    probabilities = log_probabilities.exp()
    left = (1 - (probabilities.cumsum(1) - probabilities)).clamp_min(0)
    size = log_probabilities.shape[1]
    after = torch.arange(size - 1, -1, -1, device=probabilities.device)
    return torch.where(log_probabilities > -torch.inf, (left + after * probabilities) / size, 0)
