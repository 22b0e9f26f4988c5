"""The input of an objective: rows, the sample of each row, and sums over pairs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.batch.samples import OUTSIDE
from contrastive_zoo.devices import beside
from contrastive_zoo.logspace import logaddexp, masked_logsumexp
from contrastive_zoo.pairwise.dense import similarities
from contrastive_zoo.pairwise.terms import Scales


class Encoding(Protocol):
    """Calls a user's encoder as if outside the loss, and processes its features in the same way as the rows of the batch."""

    def __call__(self, encode: Callable[[Tensor, Tensor], Tensor], index: Tensor, view: Tensor, like: Tensor) -> Tensor:
        """Rows (n, D) from ``encode(index, view)`` for n samples and n views, processed like the rows (N, D) of a batch."""


@dataclass(frozen=True)
class Batch:
    """Features of B samples in V views, ready to be contrasted.

    Attributes:
        x: (B * V, D) rows, normalised according to ``normalize``, the views of a sample next to each other. With
            ``gather="ring"`` rows of this process's samples only, while ids, sums over pairs and all other numbers are of the
            samples of all processes; `of_all` puts numbers of samples together.
        ids: (B * V,) id of the sample of each row. Rows with equal ids are never negatives of each other.
        sample_ids: (B,) id of each sample: the batch position of its first occurrence. ``ids`` and ``sample_ids`` are cached
            between batches; do not write to them.
        views: V.
        pair_similarity: (B, 1) inner product of the two views of each sample, (B, 0) if there are not two.
        pairs: Sums over pairs of rows.
        index: (B,) positions in the dataset, if given.
        labels: (B,) labels, if given.
        negatives: (M, D) or (B, M, D) extra negatives, normalised like x, if given. With several processes, the extra negatives
            of this process, which belong to this process's samples only, unless ``shared_negatives``; `extra_logsumexp` takes
            that into account.
        negatives_ids: (M,) or (B, M) ids of the extra negatives, on their device; `OUTSIDE` for samples outside the
            batch, which are negatives of every row.
        shared_negatives: Whether the extra negatives are those of all processes, for the samples of all.
        training: Whether the loss is in training mode.
        encode: Computes rows of samples outside the batch with a user's encoder.
        uniform: Whether all anchors will get the same weight (they do, unless the reduction is "none").
        complete: Whether all samples are known to differ, so that every row has negatives in the batch.
        copies: Tensors of the batch on the host, each with its copy on the device of the rows; see `placed`.
        diagnostics: Statistics that the objective adds to `loss_fn.diagnostics`; detached.
    """

    x: Tensor
    ids: Tensor
    sample_ids: Tensor
    views: int
    pair_similarity: Tensor
    pairs: Pairs
    index: Tensor | None = None
    labels: Tensor | None = None
    negatives: Tensor | None = None
    negatives_ids: Tensor | None = None
    shared_negatives: bool = False
    training: bool = True
    encode: Encoding | None = None
    uniform: bool = True
    complete: bool = False
    copies: tuple[tuple[Tensor, Tensor], ...] = ()
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of samples, B."""
        return self.sample_ids.shape[0]

    @property
    def alone(self) -> bool:
        """Whether no other process has rows of the batch, so that nothing need be compared on the host."""
        return not self.pairs.share.sizes

    @property
    def scattered(self) -> bool:
        """Whether ``x`` holds the rows of this process's samples only."""
        return self.pairs.share.ring

    def class_ids(self) -> Tensor:
        """(B,) class of each sample, below B: equal for equal labels. Rows of one sample take the label of its first row."""
        assert self.labels is not None
        labels = self.labels.long()
        if not self.complete:
            labels = labels[beside(self.sample_ids, labels)]
        return torch.searchsorted(labels.sort().values, labels.contiguous())

    def placed(self, integers: Tensor) -> Tensor:
        """The index, ``ids``, ``sample_ids`` or other integers of the batch on the device of the rows.

        The batch holds copies of what it needs there, and regular ids are made there, so nothing is copied twice.
        """
        if integers.device == self.x.device:
            return integers
        for on_host, copy in self.copies:
            if integers is on_host:
                return copy
        if self.complete and (integers is self.ids or integers is self.sample_ids):
            return torch.arange(len(integers), device=self.x.device) // (len(integers) // self.size)
        return beside(integers, self.x)

    def of_all(self, values: Tensor) -> Tensor:
        """Numbers of all samples, (B, ...), from those of the samples that ``x`` holds rows of."""
        return self.pairs.share.of_all(values)

    def squared_lengths(self, x: Tensor) -> Tensor:
        """(B * V,) squared lengths of rows like ``x``, of all samples."""
        return self.of_all(self.per_view(x.square().sum(1))).flatten()

    def view(self, number: int) -> Tensor:
        """(B, D) rows of one view."""
        return self.by_view()[number]

    def each_view(self) -> tuple[Tensor, ...]:
        """(B, D) rows of every view."""
        return rearrange(self.x, "(b v) d -> b v d", v=self.views).unbind(1)

    def by_view(self) -> Tensor:
        """(V, B, D) rows, grouped by view."""
        return rearrange(self.x, "(b v) d -> v b d", v=self.views)

    def per_view(self, values: Tensor) -> Tensor:
        """(B * V,) values per row as (B, V)."""
        return rearrange(values, "(b v) -> b v", v=self.views)

    def positives(self) -> list[Tensor]:
        """Inner product of each row with each of its V - 1 other views, V - 1 tensors (B, V); one (B, 1) for two views."""
        if self.views == 2:
            return [self.pair_similarity]
        rows = rearrange(self.x, "(b v) d -> b v d", v=self.views)
        return [self.of_all(torch.linalg.vecdot(rows, rows.roll(-shift, 1))) for shift in range(1, self.views)]

    def positive_similarity(self) -> Tensor:
        """Mean inner product of each row with its other views, (B, V); (B, 1) for two views."""
        positives = self.positives()
        return positives[0] if len(positives) == 1 else torch.stack(positives).mean(0)

    def dropped(self, losses: Tensor, negatives: Tensor) -> Tensor:
        """Losses of anchors, with -inf for each anchor that has no negatives (its log-sum-exp over them is -inf)."""
        return losses if self.complete else losses.masked_fill(negatives == -torch.inf, -torch.inf)

    def logsumexp(self, scale: Scales) -> Tensor:
        r"""$\log \sum \exp(\text{scale} \cdot s)$ over all negatives of each row: rows of all views, and extra negatives.

        (B, V), or (K, B, V) for a tuple of K scales.
        """
        sums = self.pairs.logsumexp(self.x, scale=scale, ids=self.ids)
        shape = self.size, self.views
        from_batch = sums.view(shape if sums.dim() == 1 else (*sums.shape[:-1], *shape))
        return from_batch if self.negatives is None else logaddexp(from_batch, self.extra_logsumexp(scale))

    def extra_logsumexp(self, scale: Scales, views: int | None = None) -> Tensor:
        """Log-sum-exp over the extra negatives only, for the first ``views`` views, (B, views) or (K, B, views)."""

        def of_samples(pairs: Pairs, x: Tensor, ids: Tensor, scale: Scales) -> Tensor:
            anchors = rearrange(x, "(b v) d -> b v d", v=self.views)[:, :views]
            sums = self._against_extra_keys(pairs, anchors, rearrange(ids, "(b v) -> b v", v=self.views)[:, :views], scale)
            return sums.movedim(-2, 0)

        return self._with_extra_keys(of_samples, scale).movedim(0, -2)

    def _with_extra_keys(self, function: Callable[[Pairs, Tensor, Tensor, Scales], Tensor], scale: Scales) -> Tensor:
        """``function(pairs, x, ids, scale)``, one row per sample, for the samples that the extra negatives belong to."""
        ids = self.placed(self.ids)
        if self.shared_negatives:
            return function(self.pairs, self.x, ids, scale)
        return self.pairs.on_own_samples(function, self.x, ids, scale)

    def _against_extra_keys(self, pairs: Pairs, anchors: Tensor, ids: Tensor, scale: Scales) -> Tensor:
        assert self.negatives is not None
        assert self.negatives_ids is not None
        if self.negatives.dim() == 2:
            flat = anchors.flatten(0, 1)
            sums = pairs.logsumexp(flat, self.negatives, scale=scale, ids=ids.flatten(), key_ids=self.negatives_ids)
            return sums.unflatten(-1, ids.shape)
        similarity = similarities(anchors, self.negatives)
        own = ids[:, :, None] == self.negatives_ids[:, None, :]
        if isinstance(scale, tuple):
            return torch.stack([masked_logsumexp(similarity * one, own) for one in scale])
        return masked_logsumexp(similarity * scale, own)

    def negatives_count(self, views: int | None = None) -> Tensor:
        """(B, 1) number of negatives of each sample: rows of ``views`` views, plus extra negatives."""
        if self.complete and not torch.compiler.is_compiling():
            others = (self.size - 1) * (views or self.views)
            count = torch.full((self.size,), others, dtype=torch.int64, device=self.x.device)
        else:
            ids = self.placed(self.sample_ids)
            same = torch.zeros_like(ids).index_add_(0, ids, torch.ones_like(ids))[ids]
            count = (self.size - same) * (views or self.views)
        if self.negatives_ids is not None:
            count = count + self._with_extra_keys(self._extra_count, 1.0).long()
        return count[:, None]

    def _extra_count(self, pairs: Pairs, x: Tensor, ids: Tensor, scale: Scales) -> Tensor:
        """(B,) number of extra negatives that do not belong to the anchor's own sample, in the dtype of the rows."""
        assert self.negatives_ids is not None
        key_ids, samples = self.negatives_ids, ids.view(-1, self.views)[:, 0]
        if key_ids.dim() == 2:
            return (key_ids != samples[:, None]).sum(1).to(x)
        # Keys of samples outside the batch are counted in an extra entry after all samples.
        place = torch.where(key_ids == OUTSIDE, self.size, key_ids)
        own = key_ids.new_zeros(self.size + 1).index_add_(0, place, torch.ones_like(place))
        return (key_ids.shape[0] - own[samples]).to(x)
