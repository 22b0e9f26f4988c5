"""The sampler "uniform": uniform draws from a table of last embeddings."""

import math

from torch import Tensor

from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.base import Encode
from contrastive_zoo.samplers.randomness import step_seed
from contrastive_zoo.samplers.stored import Stored
from contrastive_zoo.samplers.table import Draws, TableSampler, softmax


@samplers.register(
    "uniform",
    title="Uniform draws from the table",
    summary="Negatives drawn uniformly from all samples, weighted by the softmax of their scores.",
    paper="Bengio and Senecal, IEEE Transactions on Neural Networks 2008 (self-normalised importance sampling)",
    equation=r"n_k \sim U(\mathcal{N}_a), \quad w_k = \frac{e^{s_{an_k}/\tau}}{\sum_l e^{s_{an_l}/\tau}}",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"num_negatives": Range(1)},
)
class UniformSampler(TableSampler):
    r"""K rows drawn uniformly, with replacement, from the table of last embeddings, weighted by a softmax.

    $$n_k \sim U(\mathcal{N}_a), \qquad w_k = \frac{e^{s_{an_k}/\tau}}{\sum_l e^{s_{an_l}/\tau}}$$

    The draws are uniform; with these weights they represent softmax(s / temperature) with a bias of order 1 / K.
    `log_mean` is the logarithm of the mean of $e^{s/\tau}$ over the draws; its gradient equals the weighted gradient.

    Args:
        num_samples: Size of the dataset.
        num_negatives: Number of draws per anchor, K.
        encode: See `TableSampler`.
        embedding_dim: See `TableSampler`.
        seed: Random seed.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("uniform", num_samples=100, num_negatives=8).law
        'uniform over all rows of other samples, weighed towards softmax(s / temperature)'
    """

    law = "uniform over all rows of other samples, weighed towards softmax(s / temperature)"

    by_parts = False  # who holds an embedding scores it, and tells all processes

    def __init__(
        self,
        *,
        num_samples: int,
        num_negatives: int = 64,
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
        found = stored.uniform(x, scale, samples, self.num_negatives, seed, anchors)
        return Draws(found.rows, softmax(found.log_scores), found.log_sum - math.log(self.num_negatives))
