"""Ordered SGD: keep the q of k candidate batches with the highest loss.

Kawaguchi and Lu, "Ordered SGD: A New Stochastic Optimization Framework", 2020. arXiv:1907.04371
Cho et al., "Mini-Batch Optimization of Contrastive Loss", 2023. arXiv:2307.05906
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from contrastive_zoo.batch_samplers.base import Positions
from contrastive_zoo.batch_samplers.selection import SelectedBatches
from contrastive_zoo.checks import check_at_most, check_choice, check_count
from contrastive_zoo.loss import Loss, get_loss
from contrastive_zoo.registry import batch_samplers

LossFunction = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def ordered_selection(
    candidates: Positions, z1: Tensor, z2: Tensor, loss_fn: LossFunction, *, k: int, q: int, keep: str = "highest"
) -> Positions:
    """The q of every k candidate batches with the highest loss, in increasing order of loss.

    Args:
        candidates: (M, B) rows of the features; k consecutive batches compete. The last M mod k are left out.
        z1: (N, D) features of the first view or modality.
        z2: (N, D) features of the second.
        loss_fn: Loss of (B, D) features of both views.
        k: Number of batches that compete.
        q: Number of batches to keep of every k.
        keep: "highest", or "lowest" for the batches with the lowest loss. Among equal losses the earlier batch is kept.

    Returns:
        (M // k * q, B).

    Raises:
        TypeError: k or q is no whole number.
        ValueError: q is more than k, or ``keep`` is neither "highest" nor "lowest".

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> z = torch.tensor([[0.1], [0.2], [0.3], [0.0]])
        >>> ordered_selection(np.array([[0, 1], [2, 3]]), z, z, lambda z1, z2: z1.max(), k=2, q=1)
        array([[2, 3]])
    """
    keep = check_choice("keep", keep, ("highest", "lowest"))
    k = check_count("k", k)
    q = _check_kept(q, k)
    batches = torch.from_numpy(candidates[: len(candidates) // k * k])
    losses = rearrange(torch.stack([loss_fn(z1[batch], z2[batch]) for batch in batches]), "(group k) -> group k", k=k)
    chosen = losses.sort(dim=1, descending=keep == "highest", stable=True).indices[:, :q]
    increasing = chosen.flip(1) if keep == "highest" else chosen
    groups = rearrange(batches, "(group k) b -> group k b", k=k)
    kept = torch.take_along_dim(groups, rearrange(increasing, "group q -> group q 1"), dim=1)
    return rearrange(kept, "group q b -> (group q) b").numpy()


def _check_kept(q: object, k: int) -> int:
    kept = check_count("q", q)
    check_at_most("q", kept, "k", k)
    return kept


def _check_loss(loss: object) -> nn.Module:
    """Check and return the loss that batches are selected by."""
    loss_fn = get_loss(loss) if isinstance(loss, str) else loss
    if not isinstance(loss_fn, nn.Module):
        raise TypeError(f"loss must be the name of an objective or a loss made by get_loss, got {type(loss).__name__}.")
    if isinstance(loss_fn, Loss) and "labels" in loss_fn.needs:
        raise ValueError(
            f"loss: {loss_fn.card.name!r} needs labels, which batches are not selected by. Take another objective."
        )
    return loss_fn


def _evaluate(loss_fn: nn.Module, z1: Tensor, z2: Tensor) -> Tensor:
    """Loss in evaluation mode, without tables or collectives; the training mode is restored."""
    training = loss_fn.training
    loss_fn.eval()
    try:
        value: Tensor = loss_fn(z1, z2)
    finally:
        loss_fn.train(training)
    return value


@batch_samplers.register(
    "ordered",
    title="Ordered SGD",
    summary="The q of every k batches of a random partition with the highest loss.",
    paper="Kawaguchi and Lu, 2020. arXiv:1907.04371; Cho et al., 2023. arXiv:2307.05906",
    draws=True,
    scale="Equal selections from equal candidates.",
    differences=(
        "Candidates are consecutive batches of one random partition of the dataset, so no sample occurs twice; batches "
        "beyond the last group of k are left out of the epoch.",
    ),
)
class OrderedBatches(SelectedBatches):
    """The q of every k batches of a random partition with the highest loss; call `refresh` before every epoch.

    An epoch has ``num_samples // batch_size // k * q`` batches. Before the first `refresh` the batches are random.

    Args:
        num_samples: Size of the dataset.
        batch_size: Samples in a global batch.
        k: Number of batches that compete; by default 10, or all batches if there are fewer.
        q: Number of batches to keep of every k; by default half.
        loss: Name of an objective, or a loss made by `get_loss`; used in evaluation mode, so its tables do not change.
        keep: "highest", or "lowest" for the batches with the lowest loss.
        seed: Random seed.
        num_replicas: Number of processes; by default the size of the process group when a pass begins, or 1 without a group.
        rank: Rank of this process; by default its rank in the process group when a pass begins, or 0 without a group.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: k exceeds the number of batches, q exceeds k, or ``loss`` is unknown or needs labels.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_batch_sampler("ordered", num_samples=12, batch_size=2, k=3, q=1)
        >>> sampler.refresh(torch.randn(12, 4), torch.randn(12, 4), torch.arange(12))
        >>> len(list(sampler))
        2
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        k: int | None = None,
        q: int | None = None,
        loss: str | nn.Module = "infonce",
        keep: str = "highest",
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(num_samples=num_samples, batch_size=batch_size, seed=seed, num_replicas=num_replicas, rank=rank)
        self.candidates = self.num_samples // self.batch_size
        self.k = check_count("k", min(10, self.candidates) if k is None else k)
        check_at_most("k", self.k, "the number of whole batches", self.candidates)
        self.q = _check_kept((self.k + 1) // 2 if q is None else q, self.k)
        self.keep = check_choice("keep", keep, ("highest", "lowest"))
        self._loss_fn = _check_loss(loss)

    def __len__(self) -> int:
        return self.candidates // self.k * self.q

    def selection_size(self) -> int:
        """See `SelectedBatches.selection_size`."""
        return len(self) * self.batch_size

    def select(self, z1: Tensor, z2: Tensor, generator: "np.random.Generator") -> Positions:
        """See `SelectedBatches.select`."""
        order = generator.permutation(self.num_samples)[: self.candidates * self.batch_size]
        candidates = order.reshape(self.candidates, self.batch_size)
        loss_fn = partial(_evaluate, self._loss_fn)
        return ordered_selection(candidates, z1, z2, loss_fn, k=self.k, q=self.q, keep=self.keep).reshape(-1)
