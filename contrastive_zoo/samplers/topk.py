"""The sampler "topk": the hardest rows of a table of last embeddings."""

from torch import Tensor

from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.base import Encode
from contrastive_zoo.samplers.stored import Stored
from contrastive_zoo.samplers.table import Draws, TableSampler, log_count, softmax


@samplers.register(
    "topk",
    title="The k hardest of the table",
    summary="The k nearest rows of other samples in the whole dataset, weighted by the softmax of their scores.",
    paper="Xiong et al., ICLR 2021, section 4 (negatives from an index of stale embeddings). arXiv:2007.00808",
    equation=r"\{n_1, \ldots, n_k\} = \operatorname{arg\,top}_k s_{an}, \quad "
    r"w_j = \frac{e^{s_{an_j}/\tau}}{\sum_l e^{s_{an_l}/\tau}}",
    needs={"index"},
    stateful=True,
    ranges={"num_negatives": Range(1)},
)
class TopKSampler(TableSampler):
    r"""The k most similar rows in the table of last embeddings, weighted by a softmax.

    $$\{n_1, \ldots, n_k\} = \operatorname{arg\,top}_k s_{an}, \qquad w_j = \frac{e^{s_{an_j}/\tau}}{\sum_l e^{s_{an_l}/\tau}}$$

    No random numbers are drawn. The law is softmax(s / temperature) truncated to the k hardest rows; the truncated mass is the
    bias, which is smaller at lower temperatures. `log_mean` sums over the k rows only and divides by the number of all rows: a
    lower bound of the exact value.

    Args:
        num_samples: Size of the dataset.
        num_negatives: Number of rows per anchor, k.
        encode: See `TableSampler`.
        embedding_dim: See `TableSampler`.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("topk", num_samples=100, num_negatives=8).law
        'softmax(s / temperature) over the k hardest rows of other samples'
    """

    law = "softmax(s / temperature) over the k hardest rows of other samples"

    def __init__(
        self,
        *,
        num_samples: int,
        num_negatives: int = 16,
        encode: Encode | None = None,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__(num_samples=num_samples, num_negatives=num_negatives, encode=encode, embedding_dim=embedding_dim)

    def draw(self, x: Tensor, scale: Tensor, samples: Tensor, stored: Stored, anchors: slice) -> Draws:
        """See `TableSampler.draw`."""
        found = stored.largest(x, scale, samples, self.num_negatives, None, anchors)
        log_mean = found.log_scores.logsumexp(1) - log_count(found)
        return Draws(found.rows, softmax(found.log_scores), log_mean)
