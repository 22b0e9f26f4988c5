"""pytorch-metric-learning: losses of the zoo with the call signature of that package."""

from typing import Any

from torch import Tensor, nn

from contrastive_zoo.loss import Loss
from contrastive_zoo.loss.get import check_loss

__all__ = ["MetricLoss"]


class MetricLoss(nn.Module):
    """A loss of embeddings and labels, for the training loops and trainers of pytorch-metric-learning.

    For `supcon`, `scl` and `hscl` the labels are classes, and ``MetricLoss(zoo.get_loss("supcon", temperature=0.1))`` equals
    ``SupConLoss(temperature=0.1)``. For all other objectives the labels say which two rows are views of one sample: embeddings
    hold the first views, then the second views in the same order, and labels hold the position of each sample in the dataset,
    twice. With such labels ``MetricLoss(zoo.get_loss("ntxent", temperature=0.07))`` equals ``NTXentLoss(temperature=0.07)``.

    The zoo contrasts with the batches of all processes, so no ``DistributedLossWrapper`` is needed.

    Args:
        loss_fn: A loss of the zoo.

    Raises:
        TypeError: ``loss_fn`` is no loss of the zoo.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> from contrastive_zoo.integrations.pytorch_metric_learning import MetricLoss
        >>> loss_fn = MetricLoss(zoo.get_loss("ntxent", temperature=0.5))
        >>> loss_fn(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
        tensor(0.5944)
    """

    def __init__(self, loss_fn: Loss) -> None:
        super().__init__()
        self.loss_fn = check_loss(loss_fn)
        self.by_class = "one_view" in loss_fn.card.uses

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Any, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (N, D).
            labels: (N,) integers.
            indices_tuple: None: the zoo contrasts all pairs of a batch, so there is nothing for a miner to choose.
            ref_emb: None, or ``embeddings``.
            ref_labels: None, or ``labels``.

        Raises:
            ValueError: Pairs were mined, the references are not the embeddings, or labels are not the same in both halves.
        """
        if indices_tuple is not None:
            raise ValueError("indices_tuple must be None: the loss contrasts all pairs of the batch. Leave the miner out.")
        if not (ref_emb is None or ref_emb is embeddings) or not (ref_labels is None or ref_labels is labels):
            raise ValueError(
                "ref_emb must be None or embeddings, and ref_labels None or labels: the rows of a batch are contrasted with "
                "each other. Concatenate embeddings and ref_emb, or call the loss of the zoo: loss_fn(z1, z2) for two views, "
                "loss_fn(z1, z2, negatives=ref_emb) for a memory bank."
            )
        if self.by_class:
            return self.loss_fn(embeddings, labels=labels)
        first, second = labels.tensor_split(2)
        if first.shape != second.shape or not bool((first == second).all()):
            raise ValueError(
                f"labels must be the same in both halves: {self.loss_fn.card.name!r} contrasts two views of each sample. Pass "
                "torch.cat([z1, z2]) with index.repeat(2), or use supcon, scl or hscl for classes."
            )
        return self.loss_fn(*embeddings.chunk(2), index=first)
