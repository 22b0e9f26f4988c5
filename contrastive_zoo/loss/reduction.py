"""Reduces the losses of anchors, and says where a batch has nothing to contrast."""

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.devices import readable
from contrastive_zoo.registry import Card


def nothing_to_contrast(batch: Batch) -> str:
    """Why no anchor has a negative; empty if some anchor has one, or if the answer needs a synchronisation."""
    if batch.negatives is not None:
        return ""
    if batch.size == 1:
        return "the batch holds one sample, which has no negatives"
    if batch.complete or batch.index is None or not readable(batch.sample_ids):
        return ""
    return "" if bool(batch.sample_ids.any()) else "all rows of the batch are one sample, by index"


def all_anchors_have_losses(card: Card, batch: Batch) -> bool:
    """Whether no anchor can be left out, known without looking at the losses, which an accelerator would have to do."""
    return batch.complete and batch.negatives is None and not card.draws and "labels" not in card.needs


def reduced(values: Tensor, batch: Batch, reduction: str, *, whole: bool) -> Tensor | None:
    """The loss of a batch: the values reduced over the anchors that have a loss.

    Args:
        values: One number, or the losses of the anchors, (B,) or (B, anchors per sample), -inf for an anchor that is left out.
        batch: The batch, whose diagnostics receive the fraction of anchors that are left out.
        reduction: "mean", "sum" or "none".
        whole: Whether no anchor is left out.

    Returns:
        One number, (B,) for "none"; None if no anchor has a loss, as far as the host can read that.
    """
    if values.dim() == 0:
        return values
    if whole and reduction == "mean":
        return values.mean()
    if values.dim() == 1:
        values = values[:, None]
    known = readable(values)
    if whole or (known and float(values.detach().mean()) > -torch.inf):
        return values.mean() if reduction == "mean" else _total(values.mean(1), batch, reduction)
    kept = values != -torch.inf
    count = kept.sum()
    batch.diagnostics["dropped_anchors"] = 1 - count / kept.numel()
    if known and int(count) == 0:
        return None
    return _total(torch.where(kept, values, 0).sum(1) * (batch.size / count.clamp_min(1).to(values.dtype)), batch, reduction)


def _total(per_sample: Tensor, batch: Batch, reduction: str) -> Tensor:
    if reduction == "none":
        return batch.pairs.share.own_values(per_sample)
    return per_sample.sum() if reduction == "sum" else per_sample.mean()
