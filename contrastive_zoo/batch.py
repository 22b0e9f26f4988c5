"""What an objective gets to see: rows, who is who, and a way to sum over pairs."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from contrastive_zoo.logspace import logaddexp, masked_logsumexp


class Pairs(Protocol):
    """Sums over pairs of rows; `contrastive_zoo.pairwise` with a backend already chosen."""

    @property
    def unit_rows(self) -> bool:
        """Whether all rows have length 1."""

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

    def logsumexp_with_mean(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        scale: Tensor,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `contrastive_zoo.pairwise.logsumexp_with_mean`."""

    def kernel_sum(self, x: Tensor, *, kernel: str, parameter: float, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.kernel_sum`."""

    def square_sum(self, x: Tensor, keys: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """See `contrastive_zoo.pairwise.square_sum`."""


@dataclass(frozen=True)
class Batch:
    """Features of B samples in V views, ready to be contrasted.

    Attributes:
        x: (B * V, D) rows, normalised as asked for, the views of a sample next to each other.
        ids: (B * V,) sample of each row. Rows with equal ids are never negatives of each other.
        views: V.
        pairs: Sums over pairs of rows.
        index: (B,) positions in the data set, if given.
        labels: (B,) labels, if given.
        negatives: (M, D) or (B, M, D) extra keys, normalised like x, if given.
        negatives_ids: (M,) or (B, M) ids of the extra keys; -1 is nobody's.
        training: Whether the loss is in training mode.
        uniform: Whether all anchors will get the same weight (they do, unless the reduction is "none").
        diagnostics: Figures that the objective leaves for `loss_fn.diagnostics`; detached.
    """

    x: Tensor
    ids: Tensor
    views: int
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

    def view_ids(self) -> Tensor:
        """(B,) ids of the rows of any one view."""
        return self.ids.view(self.size, self.views)[:, 0].contiguous()

    def per_view(self, values: Tensor) -> Tensor:
        """(B * V,) values per row as (B, V)."""
        return values.view(self.size, self.views)

    def positive_similarity(self) -> Tensor:
        """(B, 1) inner product of the two views of each sample."""
        return _PairSimilarity.apply(self.x.view(self.size, 2, -1))  # type: ignore[no-any-return,no-untyped-call]

    def logsumexp(self, scale: float | Tensor) -> Tensor:
        r"""$\log \sum \exp(\text{scale} \cdot s)$ over all negatives of each row, both views and extra keys, (B, V)."""
        from_batch = self.per_view(self.pairs.logsumexp(self.x, scale=scale, ids=self.ids))
        return from_batch if self.negatives is None else logaddexp(from_batch, self.extra_logsumexp(scale))

    def extra_logsumexp(self, scale: float | Tensor, views: int | None = None) -> Tensor:
        """The same over the extra keys only, for the first ``views`` views, (B, views)."""
        assert self.negatives is not None
        assert self.negatives_ids is not None
        anchors = self.x.view(self.size, self.views, -1)[:, :views]
        ids = self.ids.view(self.size, self.views)[:, :views]
        if self.negatives.dim() == 2:
            flat = anchors.flatten(0, 1)
            sums = self.pairs.logsumexp(flat, self.negatives, scale=scale, ids=ids.flatten(), key_ids=self.negatives_ids)
            return sums.view(ids.shape)
        logits = torch.einsum("bvd,bmd->bvm", anchors, self.negatives) * scale
        own = ids.to(logits.device)[:, :, None] == self.negatives_ids.to(logits.device)[:, None, :]
        return masked_logsumexp(logits, own)

    def negatives_count(self, views: int | None = None) -> Tensor:
        """(B, 1) number of rows, of ``views`` views, that are negatives of each sample."""
        ids = self.view_ids()
        ordered = ids.sort().values
        same = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
        return ((self.size - same) * (views or self.views)).to(self.x.device)[:, None]

    def first_visit(self) -> Tensor:
        """(B,) position of the first row of each sample, so that a sample twice in a batch is written once."""
        ids = self.view_ids()
        ordered, order = ids.sort(stable=True)
        return order[torch.searchsorted(ordered, ids)]


class _PairSimilarity(torch.autograd.Function):
    """(B, 1) inner products of (B, 2, D) pairs of rows; autograd through two slices would take three times as long."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor) -> Tensor:
        """One product per pair."""
        ctx.save_for_backward(pairs)
        return torch.linalg.vecdot(pairs[:, 0], pairs[:, 1])[:, None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Each row gets the other, in ordinary operations that can be differentiated again."""
        (pairs,) = ctx.saved_tensors
        return pairs.flip(1) * grads[0][:, :, None]
