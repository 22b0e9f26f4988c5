"""Base of the samplers over a table of the last embeddings of all samples."""

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_count, shape
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
from contrastive_zoo.samplers.stored import Found, Stored
from contrastive_zoo.state.counters import StepCounter
from contrastive_zoo.state.saved import NOBODY, check_table
from contrastive_zoo.state.tables import EmbeddingTable, check_visited


class Draws(NamedTuple):
    """Rows of the table drawn for N anchors.

    Attributes:
        rows: (N, K) int64 rows; -1 if an anchor has fewer than K.
        weights: (N, K) weights; 0 for row -1.
        log_mean: (N,) logarithm of the mean of exp(s / temperature); arbitrary for an anchor without rows.
    """

    rows: Tensor
    weights: Tensor
    log_mean: Tensor


class TableSampler(NegativeSampler):
    """Base class of samplers over a table that holds the last embedding of each sample and view.

    A batch enters the table before negatives are drawn. Rows of the anchor's own sample and samples that no batch has
    contained yet are excluded. A negative in the batch gets a gradient; all other negatives are constants, unless `encode` is
    given.

    Args:
        num_samples: Size of the dataset.
        num_negatives: Negatives per anchor.
        encode: Maps (n,) positions in the dataset and (n,) views, 0 or 1, both int64, to features (n, D). Called once per step
            with all negatives outside the batch, each once, which then get a gradient. Scores and weights still come from the
            table.
        embedding_dim: Features per embedding; by default taken from the first batch, or from a checkpoint.
        seed: Random seed.

    Attributes:
        by_parts: Whether each process that holds a part of the table finds the negatives of a part of the anchors; if not,
            each process finds those of all anchors.

    Raises:
        ValueError: A number is below 1.
        TypeError: A number is not whole.
    """

    divisible = True
    by_parts: ClassVar[bool] = True

    visited: Tensor

    def __init__(
        self,
        *,
        num_samples: int,
        num_negatives: int,
        encode: Encode | None = None,
        embedding_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_samples = check_count("num_samples", num_samples)
        self.num_negatives, self.encode = check_count("num_negatives", num_negatives), check_encode(encode)
        self.seed, self.step = seed, StepCounter()
        self.embeddings = EmbeddingTable(num_samples, 2, width=embedding_dim)
        self.register_table("visited", num_samples, fill=False, per_sample=True)

    def draw(self, x: Tensor, scale: Tensor, samples: Tensor, stored: Stored, anchors: slice) -> Draws:
        """Rows for some anchors; subclasses implement it.

        Args:
            x: (N, D) all anchors, detached.
            scale: 0-dim, 1 / temperature.
            samples: (N,) sample of each anchor.
            stored: The table; its methods search it on all processes that hold a part, which must call them alike.
            anchors: Anchors to draw for.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement draw(x, scale, samples, stored, anchors).")

    def sample(self, batch: Batch, scale: Tensor) -> Negatives:
        """See `NegativeSampler.sample`."""
        if batch.alone:
            self.step.place(batch.x)
        before = self._write(batch)
        try:
            drawn = self._drawn(batch, scale.detach())
            position, in_batch = _places(batch, drawn.rows)
            weights = torch.where(in_batch, drawn.weights, 0)
            remembered = self._remembered(batch, drawn.rows, drawn.weights - weights)
            surrogate = _similarity(batch, _Weighted(position, batch.x, weights), remembered) * scale
        except BaseException:  # an encoder that raises, or a process that is lost, must not change the state
            self._put(batch, *before, torch.ones_like(before[1]))
            raise
        self.step.advance()
        log_mean = torch.where(has_negatives(batch), drawn.log_mean, -torch.inf)
        diagnostics = {"in_batch_share": weights.sum(1).mean()}
        return Negatives(surrogate, log_mean, lambda: WeightedNegatives(drawn.rows, drawn.weights, in_batch), diagnostics)

    def _drawn(self, batch: Batch, scale: Tensor) -> Draws:
        """Rows for all anchors; each process draws for a part of the anchors."""
        samples, stored = data_rows(batch) // 2, Stored(self.embeddings.rows.flatten(0, 1), self.visited, self.layout)

        def draw(x: Tensor, anchors: slice) -> Draws:
            return self.draw(x, scale, samples, stored, anchors)

        # Processes that hold parts of the table divide the anchors or not, whatever the backend does.
        share = replace(batch.pairs.share, divided=self.by_parts) if self.layout.divided else batch.pairs.share
        return Draws(*share.on_rows(draw, batch.x.detach()))

    def _remembered(self, batch: Batch, rows: Tensor, weights: Tensor) -> "_Weighted | Tensor":
        """The negatives outside the batch, or their weighted sums (N, D) if processes hold parts of the table."""
        features, place = self.embeddings.rows.flatten(0, 1), rows.clamp_min(0)
        if self.encode is not None:
            features, place = encode_rows(batch, self.encode, torch.where(weights > 0, rows, NOBODY))
        elif self.layout.divided:
            return self.layout.weighted_sum(features, place, weights.to(features), views=2).to(batch.x)
        return _Weighted(place, features, weights.to(features))

    @torch.no_grad()
    def _write(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Write the rows of a batch to the table, except rows that are not finite or have no negatives; return the old rows."""
        assert batch.index is not None
        self.embeddings.fit(batch.x.shape[1])
        rows, visited = self.layout.near(batch.placed(batch.index), self.embeddings.rows, self.visited)
        new = batch.x.detach().view(batch.size, 2, -1)[batch.placed(batch.sample_ids)]
        sound = torch.isfinite(new).flatten(1).all(1) & batch.per_view(has_negatives(batch))[:, 0]
        self._put(batch, new.to(rows), visited | sound, sound)
        return rows, visited

    @torch.no_grad()
    def _put(self, batch: Batch, rows: Tensor, visited: Tensor, where: Tensor) -> None:
        assert batch.index is not None
        index = batch.placed(batch.index)
        self.layout.write(self.embeddings.rows, index, rows, where[:, None, None])
        self.layout.write(self.visited, index, visited, where)

    def table(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """``embeddings`` (num_samples, 2, D), the last of each sample and view, and ``visited`` (num_samples,)."""
        embeddings, visited = self.layout.held(index, self.embeddings.rows, self.visited)
        return {"embeddings": embeddings.cpu().clone(), "visited": visited.cpu().clone()}

    @torch.no_grad()
    def load_table(self, *, embeddings: Tensor, visited: Tensor) -> None:
        """Load the result of `table`.

        Raises:
            TypeError: A table is no tensor, or of another kind.
            ValueError: A size does not fit, or an embedding of a visited sample is not finite.
        """
        size = self.layout.size
        check_visited(visited, size)
        if not isinstance(embeddings, Tensor):
            raise TypeError(f"embeddings must be a tensor, got {type(embeddings).__name__}. Pass what table() returned.")
        if embeddings.dim() != 3 or embeddings.shape[:2] != (size, 2):
            raise ValueError(f"embeddings must have shape ({size}, 2, D), got {shape(embeddings)}.")
        check_table("embeddings", embeddings[visited.to(embeddings.device)], self.embeddings.rows)
        self.embeddings.load(embeddings)
        self.visited.copy_(self.layout.own(visited))


class _Weighted(NamedTuple):
    """K weighted negatives for each of N anchors.

    Attributes:
        place: (N, K) rows of ``rows``.
        rows: (M, D) rows, which may get a gradient.
        weights: (N, K) weights, constants.
    """

    place: Tensor
    rows: Tensor
    weights: Tensor

    def sum(self, rows: Tensor, anchors: slice, plain: bool) -> Tensor:
        """(A, D) weighted sums for some anchors, of ``rows`` in place of its own."""
        place, weights = self.place[anchors], self.weights[anchors]
        if plain and rows.requires_grad:  # embedding_bag has one derivative only
            return (weights.unsqueeze(-1) * rows[place]).sum(1)  # no product, which autocast would round in a backward pass
        return embedding_bag(place, rows, per_sample_weights=weights, mode="sum")


def _similarity(batch: Batch, inside: _Weighted, outside: _Weighted | Tensor) -> Tensor:
    """(N,) weighted mean similarity of each anchor to its negatives; each process computes a part of the anchors."""
    plain = batch.pairs.plain
    if isinstance(outside, Tensor):
        (found,) = batch.pairs.on_rows(lambda x, own: (torch.linalg.vecdot(x[own], inside.sum(x, own, plain)),), batch.x)
        return found + torch.linalg.vecdot(batch.x, outside)

    def similarity(x: Tensor, anchors: slice, rows: Tensor) -> tuple[Tensor]:
        mean = inside.sum(x, anchors, plain)
        mean = mean + outside.sum(rows, anchors, plain).to(mean)
        return (torch.linalg.vecdot(x[anchors], mean),)

    (found,) = batch.pairs.on_rows(similarity, batch.x, outside.rows)
    return found


def _places(batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of table rows in the batch, (N, K), arbitrary for rows outside the batch; and whether each is in the batch."""
    assert batch.index is not None
    ordered, order = batch.placed(batch.index).sort(stable=True)
    sample = rows // 2
    place = torch.searchsorted(ordered, sample).clamp_max(len(ordered) - 1)
    return 2 * order[place] + rows % 2, ordered[place] == sample


def log_count(found: Found) -> Tensor:
    """(N,) logarithm of the number of included rows of each anchor; 0 if there are none."""
    return found.others.clamp_min(1).to(found.log_sum).log()


def softmax(log_scores: Tensor) -> Tensor:
    """Softmax over the last axis; zeros if all scores are -inf."""
    largest = log_scores.amax(1, keepdim=True)
    terms = (log_scores - torch.where(largest == -torch.inf, 0, largest)).exp()
    return terms / terms.sum(1, keepdim=True).clamp_min(1)
