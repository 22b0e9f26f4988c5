"""What an objective gets to see: rows, who is who, and a way to sum over pairs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from contrastive_zoo.logspace import logaddexp, masked_logsumexp


class Pairs(Protocol):
    """Sums over pairs of rows; `contrastive_zoo.pairwise` with a backend already chosen."""

    def logsumexp(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: float | Tensor | tuple[float | Tensor, ...],
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> Tensor:
        """See `contrastive_zoo.pairwise.logsumexp`."""

    def logsumexp_both(
        self,
        x: Tensor,
        keys: Tensor,
        *,
        scale: float | Tensor,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `contrastive_zoo.pairwise.logsumexp_both`."""

    def kernel_sum(self, x: Tensor, *, kernel: str, parameter: float, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.kernel_sum`."""

    def on_own_samples(
        self,
        function: "Callable[[Pairs, Tensor, Tensor, float | Tensor], Tensor]",
        x: Tensor,
        ids: Tensor,
        scale: float | Tensor,
    ) -> Tensor:
        """``function(pairs, x, ids, scale)``, one row per sample, where keys of some samples only are at hand.

        Each process is given its own samples of the batch and a `Pairs` for itself, and gets the results of all.
        """


@dataclass(frozen=True)
class Batch:
    """Features of B samples in V views, ready to be contrasted.

    Attributes:
        x: (B * V, D) rows, normalised as asked for, the views of a sample next to each other.
        ids: (B * V,) sample of each row. Rows with equal ids are never negatives of each other.
        sample_ids: (B,) the same per sample: the position in the batch at which it comes first.
        views: V.
        pair_similarity: (B, 1) inner product of the two views of each sample, (B, 0) if there are more.
        pairs: Sums over pairs of rows.
        index: (B,) positions in the data set, if given.
        labels: (B,) labels, if given.
        negatives: (M, D) or (B, M, D) extra keys, normalised like x, if given; with several processes, for the samples of this
            one. `extra_logsumexp` minds that.
        negatives_ids: (M,) or (B, M) ids of the extra keys; -1 is nobody's.
        training: Whether the loss is in training mode.
        uniform: Whether all anchors will get the same weight (they do, unless the reduction is "none").
        diagnostics: Figures that the objective leaves for `loss_fn.diagnostics`; detached.
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
    training: bool = True
    uniform: bool = True
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of samples, B."""
        return self.x.shape[0] // self.views

    def view(self, number: int) -> Tensor:
        """(B, D) rows of one view."""
        return self.x.view(self.size, self.views, -1)[:, number]

    def each_view(self) -> tuple[Tensor, ...]:
        """(B, D) rows of every view."""
        return self.x.view(self.size, self.views, -1).unbind(1)

    def per_view(self, values: Tensor) -> Tensor:
        """(B * V,) values per row as (B, V)."""
        return values.view(self.size, self.views)

    def positives(self) -> list[Tensor]:
        """Inner product of each row with each of its V - 1 other views, V - 1 tensors (B, V); one (B, 1) for two views."""
        if self.views == 2:
            return [self.pair_similarity]
        rows = self.x.view(self.size, self.views, -1)
        return [torch.linalg.vecdot(rows, rows.roll(-shift, 1)) for shift in range(1, self.views)]

    def positive_similarity(self) -> Tensor:
        """Mean inner product of each row with its other views, (B, V); (B, 1) for two views."""
        positives = self.positives()
        return positives[0] if len(positives) == 1 else torch.stack(positives).mean(0)

    def logsumexp(self, scale: float | Tensor) -> Tensor:
        r"""$\log \sum \exp(\text{scale} \cdot s)$ over all negatives of each row, both views and extra keys, (B, V)."""
        from_batch = self.per_view(self.pairs.logsumexp(self.x, scale=scale, ids=self.ids))
        return from_batch if self.negatives is None else logaddexp(from_batch, self.extra_logsumexp(scale))

    def extra_logsumexp(self, scale: float | Tensor, views: int | None = None) -> Tensor:
        """The same over the extra keys only, for the first ``views`` views, (B, views)."""

        def of_samples(pairs: Pairs, x: Tensor, ids: Tensor, scale: float | Tensor) -> Tensor:
            anchors = x.view(-1, self.views, x.shape[1])[:, :views]
            return self._against_extra_keys(pairs, anchors, ids.view(-1, self.views)[:, :views], scale)

        return self.pairs.on_own_samples(of_samples, self.x, self.ids, scale)

    def _against_extra_keys(self, pairs: Pairs, anchors: Tensor, ids: Tensor, scale: float | Tensor) -> Tensor:
        assert self.negatives is not None
        assert self.negatives_ids is not None
        if self.negatives.dim() == 2:
            flat = anchors.flatten(0, 1)
            sums = pairs.logsumexp(flat, self.negatives, scale=scale, ids=ids.flatten(), key_ids=self.negatives_ids)
            return sums.view(ids.shape)
        logits = torch.einsum("bvd,bmd->bvm", anchors, self.negatives) * scale
        own = ids.to(logits.device)[:, :, None] == self.negatives_ids.to(logits.device)[:, None, :]
        return masked_logsumexp(logits, own)

    def negatives_count(self, views: int | None = None) -> Tensor:
        """(B, 1) number of rows, of ``views`` views, that are negatives of each sample."""
        ids = self.sample_ids
        same = torch.zeros_like(ids).index_add_(0, ids, torch.ones_like(ids))[ids]
        return ((self.size - same) * (views or self.views)).to(self.x.device)[:, None]
