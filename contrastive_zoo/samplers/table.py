"""Samplers over a table of the last embeddings of all samples: "uniform", "topk" and "gumbel"."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from contrastive_zoo.batch import Batch
from contrastive_zoo.checks import check_count, shape
from contrastive_zoo.objective import StepCounter
from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.base import (
    Encode,
    Negatives,
    NegativeSampler,
    WeightedNegatives,
    check_encode,
    data_rows,
    encode_rows,
    has_negatives,
)
from contrastive_zoo.samplers.memory import memory_largest, memory_uniform
from contrastive_zoo.tables import EmbeddingTable


class Draws(NamedTuple):
    """Rows of the table for each of N anchors.

    Attributes:
        rows: (N, K) int64, -1 where there are fewer that count.
        weights: (N, K), 0 there.
        log_mean: (N,) logarithm of the mean of exp(s / temperature); anything where no row counts.
    """

    rows: Tensor
    weights: Tensor
    log_mean: Tensor


class TableSampler(NegativeSampler):
    """Base of samplers over a table that holds the last embedding of each sample and view.

    A batch enters the table before anything is drawn. Rows of the anchor's own sample and samples that no batch has brought
    yet do not count. A negative that is in the batch is taken from there, and gets gradient; all others are constants, unless
    there is an `encode` for them.

    Args:
        num_samples: Size of the data set.
        num_negatives: Negatives of each anchor.
        encode: (n,) positions in the data set and (n,) views, 0 or 1, both int64, to features (n, D). Called once per step with
            all negatives outside of the batch, each once; they then get gradient. Scores and weights are those of the table.
        seed: Seed of the draws.

    Raises:
        ValueError: A number is below 1.
        TypeError: A number is not whole.
    """

    visited: Tensor

    def __init__(self, *, num_samples: int, num_negatives: int, encode: Encode | None = None, seed: int = 0) -> None:
        super().__init__()
        self.num_negatives, self.encode, self.seed = check_count("num_negatives", num_negatives), check_encode(encode), seed
        self.num_samples = num_samples
        self.step = StepCounter()
        self.embeddings = EmbeddingTable(num_samples, 2)
        self.register_buffer("visited", torch.zeros(num_samples, dtype=torch.bool))

    def draw(self, x: Tensor, scale: Tensor, own: Tensor, keys: Tensor, owners: Tensor) -> Draws:
        """Rows for each anchor; subclasses implement it.

        Args:
            x: (N, D) anchors, detached.
            scale: 0-dim, 1 / temperature.
            own: (N,) sample of each anchor.
            keys: (2 num_samples, D) the table.
            owners: (2 num_samples,) sample of each row, -1 where none has been brought yet.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement draw(x, scale, own, keys, owners).")

    def forward(self, batch: Batch, scale: Tensor) -> Negatives:
        """See `NegativeSampler.forward`."""
        own = data_rows(batch) // 2
        before = self._write(batch)
        keys, owners = self.embeddings.rows.flatten(0, 1), self._owners()
        drawn = self.draw(batch.x.detach(), scale.detach(), own, keys, owners)
        position, in_batch = _places(batch, drawn.rows)
        weights = torch.where(in_batch, drawn.weights, 0)
        mean = embedding_bag(position, batch.x, per_sample_weights=weights, mode="sum")
        try:
            mean = mean + self._remembered(batch, drawn._replace(weights=drawn.weights - weights))
        except BaseException:  # whatever the encoder raised: a call that fails changes nothing
            self._put(batch, *before)
            raise
        self.step.advance()
        surrogate = torch.linalg.vecdot(batch.x, mean) * scale
        log_mean = torch.where(has_negatives(batch), drawn.log_mean, -torch.inf)
        diagnostics = {"in_batch_share": weights.sum(1).mean()}
        return Negatives(surrogate, log_mean, lambda: WeightedNegatives(drawn.rows, drawn.weights, in_batch), diagnostics)

    def _remembered(self, batch: Batch, drawn: Draws) -> Tensor:
        """(N, D) weighted sum of the negatives that are not in the batch; the others have weight 0."""
        features, place = self.embeddings.rows.flatten(0, 1), drawn.rows.clamp_min(0)
        if self.encode is not None:
            features, place = encode_rows(batch, self.encode, torch.where(drawn.weights > 0, drawn.rows, -1))
        return embedding_bag(place, features, per_sample_weights=drawn.weights.to(features), mode="sum").to(batch.x)

    def _owners(self) -> Tensor:
        samples = torch.arange(len(self.visited), device=self.visited.device)
        return torch.where(self.visited, samples, -1).repeat_interleave(2)

    @torch.no_grad()
    def _write(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Put the rows of a batch into the table, unless they are not finite or nobody's negatives; what was there before."""
        assert batch.index is not None
        self.embeddings.fit(batch.x.shape[1])
        index = batch.index.to(batch.x.device)
        rows, visited = self.embeddings.rows[index], self.visited[index]
        new = batch.x.detach().view(batch.size, 2, -1)[batch.sample_ids.to(index.device)]
        sound = torch.isfinite(new).flatten(1).all(1) & batch.per_view(has_negatives(batch))[:, 0]
        self._put(batch, torch.where(sound[:, None, None], new.to(rows), rows), visited | sound)
        return rows, visited

    @torch.no_grad()
    def _put(self, batch: Batch, rows: Tensor, visited: Tensor) -> None:
        assert batch.index is not None
        index = batch.index.to(batch.x.device)
        self.embeddings.rows[index], self.visited[index] = rows, visited

    def table(self) -> dict[str, Tensor]:
        """``embeddings`` (num_samples, 2, D), the last of each sample and view, and ``visited`` (num_samples,)."""
        return {"embeddings": self.embeddings.rows.cpu().clone(), "visited": self.visited.cpu().clone()}

    @torch.no_grad()
    def load_table(self, *, embeddings: Tensor, visited: Tensor) -> None:
        """Take over what `table` returned.

        Raises:
            ValueError: A size does not fit, or an embedding of a visited sample is not finite.
        """
        if embeddings.dim() != 3 or embeddings.shape[:2] != self.embeddings.rows.shape[:2]:
            raise ValueError(f"embeddings must have shape ({len(self.visited)}, 2, D), got {shape(embeddings)}.")
        if visited.shape != self.visited.shape:
            raise ValueError(f"visited must have shape {shape(self.visited)}, got {shape(visited)}.")
        if not bool(torch.isfinite(embeddings[visited]).all()):
            raise ValueError("embeddings must be finite for every visited sample.")
        self.embeddings.load(embeddings)
        self.visited.copy_(visited)


def _places(batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where rows of the table stand in the batch, (N, K), any place if they do not; and whether they do."""
    assert batch.index is not None
    ordered, order = batch.index.to(rows.device).sort(stable=True)
    sample = rows // 2
    place = torch.searchsorted(ordered, sample).clamp_max(len(ordered) - 1)
    return 2 * order[place] + rows % 2, ordered[place] == sample


def _log_count(x: Tensor, own: Tensor, owners: Tensor) -> Tensor:
    """(N,) logarithm of the number of rows that count for each anchor, of 1 if none does."""
    counted = (owners >= 0).view(-1, 2).sum(1)
    return (counted.sum() - counted[own]).clamp_min(1).to(x).log()


def _softmax(log_scores: Tensor) -> Tensor:
    """Softmax over the last axis; zeros where all is -inf."""
    largest = log_scores.amax(1, keepdim=True)
    terms = (log_scores - torch.where(largest == -torch.inf, 0, largest)).exp()
    return terms / terms.sum(1, keepdim=True).clamp_min(1)


@samplers.register(
    "uniform",
    title="Uniform draws from the table",
    summary="Negatives drawn uniformly from all samples, weighed by the softmax of their scores.",
    paper="Bengio and Senecal, IEEE Transactions on Neural Networks 2008 (self-normalised importance sampling)",
    equation=r"n_k \sim U(\mathcal{N}_a), \quad w_k = \frac{e^{s_{an_k}/\tau}}{\sum_l e^{s_{an_l}/\tau}}",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"num_negatives": Range(1)},
)
class UniformSampler(TableSampler):
    r"""K rows drawn uniformly, with replacement, from the table of last embeddings; softmax weights among them.

    $$n_k \sim U(\mathcal{N}_a), \qquad w_k = \frac{e^{s_{an_k}/\tau}}{\sum_l e^{s_{an_l}/\tau}}$$

    The draws are uniform; with these weights they stand for softmax(s / temperature) as K grows, with a bias of order 1 / K.
    `log_mean` is the logarithm of the mean of $e^{s/\tau}$ over the draws, whose gradient is exactly the weighted one.

    Args:
        num_samples: Size of the data set.
        num_negatives: K.
        encode: See `TableSampler`.
        seed: Seed of the draws.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("uniform", num_samples=100, num_negatives=8).law
        'uniform over all rows of other samples, weighed towards softmax(s / temperature)'
    """

    law = "uniform over all rows of other samples, weighed towards softmax(s / temperature)"

    def __init__(self, *, num_samples: int, num_negatives: int = 64, encode: Encode | None = None, seed: int = 0) -> None:
        super().__init__(num_samples=num_samples, num_negatives=num_negatives, encode=encode, seed=seed)

    def draw(self, x: Tensor, scale: Tensor, own: Tensor, keys: Tensor, owners: Tensor) -> Draws:
        """See `TableSampler.draw`."""
        step = self.step.value.clone()
        rows, log_scores = memory_uniform(x, scale, own, keys, owners, self.num_negatives, self.seed, step)
        return Draws(rows, _softmax(log_scores), log_scores.logsumexp(1) - math.log(self.num_negatives))


@samplers.register(
    "topk",
    title="The k hardest of the table",
    summary="The k nearest rows of other samples in the whole data set, weighed by the softmax of their scores.",
    paper="Xiong et al., ICLR 2021, section 4 (negatives from an index of stale embeddings). arXiv:2007.00808",
    equation=r"\{n_1, \ldots, n_k\} = \operatorname{arg\,top}_k s_{an}, \quad "
    r"w_j = \frac{e^{s_{an_j}/\tau}}{\sum_l e^{s_{an_l}/\tau}}",
    needs={"index"},
    stateful=True,
    ranges={"num_negatives": Range(1)},
)
class TopKSampler(TableSampler):
    r"""The k rows of largest similarity in the table of last embeddings; softmax weights among them.

    $$\{n_1, \ldots, n_k\} = \operatorname{arg\,top}_k s_{an}, \qquad w_j = \frac{e^{s_{an_j}/\tau}}{\sum_l e^{s_{an_l}/\tau}}$$

    Nothing is drawn. The law is softmax(s / temperature) cut off after the k hardest rows; the mass cut off is the bias, which
    falls with the temperature. `log_mean` counts the k rows only, over the number of all: a lower bound of the exact one.

    Args:
        num_samples: Size of the data set.
        num_negatives: k.
        encode: See `TableSampler`.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("topk", num_samples=100, num_negatives=8).law
        'softmax(s / temperature) over the k hardest rows of other samples'
    """

    law = "softmax(s / temperature) over the k hardest rows of other samples"

    def __init__(self, *, num_samples: int, num_negatives: int = 16, encode: Encode | None = None) -> None:
        super().__init__(num_samples=num_samples, num_negatives=num_negatives, encode=encode)

    def draw(self, x: Tensor, scale: Tensor, own: Tensor, keys: Tensor, owners: Tensor) -> Draws:
        """See `TableSampler.draw`."""
        step = self.step.value.clone()
        rows, log_scores, _ = memory_largest(x, scale, own, keys, owners, self.num_negatives, False, 0, step)
        log_mean = log_scores.logsumexp(1) - _log_count(x, own, owners)
        return Draws(rows, _softmax(log_scores), log_mean)


@samplers.register(
    "gumbel",
    title="Gumbel-max draws from the table",
    summary="Draws without replacement from softmax(s / temperature) over the whole data set, weighed to be unbiased.",
    paper="Lindgren et al., NeurIPS 2021, sections 3 and 4; Des Raj, JASA 1956 (weights). arXiv:2110.15738",
    equation=r"n_1, \ldots, n_K = \operatorname{arg\,top}_K \left(s_{an}/\tau + g_{an}\right), \quad"
    r"w_l = \frac{1 - \sum_{m<l} p_{n_m} + (K - l)\,p_{n_l}}{K}",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"num_negatives": Range(1)},
)
class GumbelSampler(TableSampler):
    r"""K draws without replacement from softmax(s / temperature) over the table of last embeddings, in an unbiased mean.

    $$n_1, \ldots, n_K = \operatorname{arg\,top}_K \left(s_{an}/\tau + g_{an}\right), \qquad
      w_l = \frac{1 - \sum_{m<l} p_{n_m} + (K - l)\,p_{n_l}}{K}$$

    with independent Gumbel noise g and p the exact softmax over the table; see `des_raj_weights`. Over the draws, the weighted
    mean of anything is exactly its mean under p, for every K. `log_mean` is exact over the table.

    Args:
        num_samples: Size of the data set.
        num_negatives: K.
        encode: See `TableSampler`.
        seed: Seed of the draws.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("gumbel", num_samples=100, num_negatives=8).law
        'softmax(s / temperature) over all rows of other samples'
    """

    law = "softmax(s / temperature) over all rows of other samples"

    def __init__(self, *, num_samples: int, num_negatives: int = 16, encode: Encode | None = None, seed: int = 0) -> None:
        super().__init__(num_samples=num_samples, num_negatives=num_negatives, encode=encode, seed=seed)

    def draw(self, x: Tensor, scale: Tensor, own: Tensor, keys: Tensor, owners: Tensor) -> Draws:
        """See `TableSampler.draw`."""
        step = self.step.value.clone()
        rows, log_scores, log_sum = memory_largest(x, scale, own, keys, owners, self.num_negatives, True, self.seed, step)
        shift = torch.where(log_sum == -torch.inf, 0, log_sum)
        weights = des_raj_weights(log_scores - shift[:, None])
        return Draws(rows, weights, log_sum - _log_count(x, own, owners))


def des_raj_weights(log_probabilities: Tensor) -> Tensor:
    r"""Weights of draws without replacement that make their weighted mean unbiased.

    Term j of Des Raj's estimator takes the draws before it as they are, and draw j for all the rest,
    $t_j = \sum_{l<j} p_l f_l + (1 - C_j) f_j$ with $C_j = \sum_{l<j} p_l$; its expectation given those before is the exact
    mean. The average of K such terms weighs draw l by

    $$w_l = \frac{1 - C_l + (K - l)\,p_l}{K}.$$

    Args:
        log_probabilities: (N, K) log probability of each draw before any was made, in the order drawn; -inf where nothing was
            left to draw.

    Returns:
        (N, K) weights, adding up to 1; 0 where nothing was left to draw.

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
