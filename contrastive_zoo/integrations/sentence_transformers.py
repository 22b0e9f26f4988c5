"""Sentence Transformers: a loss for `SentenceTransformerTrainer` around any objective of the zoo."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_zoo.checks import check_choice, check_count
from contrastive_zoo.gradient_caching import cached_loss
from contrastive_zoo.loss import Loss
from contrastive_zoo.loss.get import check_loss

__all__ = ["ContrastiveLoss"]

LABEL_COLUMNS = ("index", "labels", "index and labels")


class ContrastiveLoss(nn.Module):
    """Any objective of the zoo as the loss of a `SentenceTransformerTrainer`.

    The first text column of the dataset holds anchors, the second one positives. More text columns hold negatives, which all
    anchors share. A column named "label" holds what else the objective needs: positions in the dataset, classes, or both.

    ``zoo.get_loss("infonce", temperature=0.05, symmetric=False)`` equals ``MultipleNegativesRankingLoss(model)``, and with
    ``chunk_size`` ``CachedMultipleNegativesRankingLoss(model, mini_batch_size=chunk_size)``, on one process. On several
    processes, the zoo contrasts with the batches of all processes unless the loss is made with ``gather=False``.

    The trainer optimizes the parameters of the loss with those of the model, but saves the model alone: add
    `contrastive_zoo.integrations.huggingface.LossCallback` for objectives with tables or learned scales.

    Args:
        model: The `SentenceTransformer` that is trained.
        loss_fn: A loss of the zoo.
        label: What the column "label" holds: "index", "labels", or "index and labels" for lists [index, label].
        chunk_size: Compute gradients in chunks of this many sentences of a column, with the loss of the whole batch.

    Raises:
        TypeError: ``loss_fn`` is no loss of the zoo, or takes no negatives, but the dataset has a column of negatives.
        ValueError: ``label`` is another word, or the dataset has one text column, or the column "label" does not fit.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, label: str = "index", chunk_size: int | None = None) -> None:
        super().__init__()
        self.model = model  # the trainer replaces attributes of this name by the model that it wraps
        self.embed = _Embedding(model)
        self.loss_fn = check_loss(loss_fn)
        self.label = check_choice("label", label, LABEL_COLUMNS)
        self.chunk_size = None if chunk_size is None else check_count("chunk_size", chunk_size)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of the tokenized columns, (anchor, positive, negatives...), and of the column "label"."""
        columns = [{key: value for key, value in column.items() if isinstance(value, Tensor)} for column in sentence_features]
        if len(columns) < 2:
            raise ValueError(f"the dataset must have text columns anchor and positive, got {len(columns)} column. Add one.")
        index, classes = self._index_and_labels(labels)
        if self.chunk_size is None:
            return self._of_embeddings(*map(self.embed, columns), index=index, labels=classes)
        return cached_loss(self._of_embeddings, self.embed, columns, chunk_size=self.chunk_size, index=index, labels=classes)

    def _of_embeddings(
        self, anchors: Tensor, *others: Tensor, index: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        if not others:  # gradient caching stacks more than two columns
            anchors, *rest = anchors.unbind()
            others = tuple(rest)
        positives, *negatives = others
        if not negatives:
            return self.loss_fn(anchors, positives, index=index, labels=labels)
        return self.loss_fn(anchors, positives, index=index, labels=labels, negatives=torch.cat(negatives))

    def _index_and_labels(self, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if labels is None:
            return None, None
        if self.label != "index and labels":
            return (labels, None) if self.label == "index" else (None, labels)
        if labels.dim() != 2 or labels.shape[1] != 2:
            raise ValueError(f"the column 'label' must hold lists [index, label], got shape {tuple(labels.shape)}.")
        return labels[:, 0], labels[:, 1]


class _Embedding(nn.Module):
    """The sentence embeddings of a tokenized column."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Any]) -> Tensor:
        embeddings: Tensor = self.model(features)["sentence_embedding"]
        return embeddings
