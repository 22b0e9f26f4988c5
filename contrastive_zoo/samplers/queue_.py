"""The sampler "queue": a first-in, first-out queue of the rows of past batches."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.checks import check_count, check_features, check_integers, shape
from contrastive_zoo.logspace import logaddexp
from contrastive_zoo.registry import Range, samplers
from contrastive_zoo.samplers.base import Negatives, NegativeSampler, WeightedNegatives, data_rows, has_negatives
from contrastive_zoo.samplers.memory import memory_softmax
from contrastive_zoo.state.modules import PreciseModule
from contrastive_zoo.state.saved import NOBODY, check_entries, check_table
from contrastive_zoo.state.tables import EmbeddingTable

# Largest position in a dataset whose rows, two per sample, have numbers of 64 bits.
LARGEST = 2**62 - 1


class FeatureQueue(PreciseModule):
    """A queue of embeddings, with the sample of each embedding; for any loss that takes `negatives`.

    Args:
        length: Capacity; the oldest embeddings are replaced first.
        embedding_dim: Features per embedding; by default taken from the first push, or from a checkpoint.

    Raises:
        ValueError: A number is below 1.
        TypeError: A number is not whole.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> queue, loss_fn = zoo.samplers.FeatureQueue(64), zoo.get_loss("ntxent")
        >>> for step in range(2):
        ...     z1, z2 = torch.randn(2, 8, 4)
        ...     index = torch.arange(8) + 8 * step
        ...     known = {"negatives": queue.negatives, "negatives_index": queue.negatives_index} if len(queue) else {}
        ...     loss = loss_fn(z1, z2, index=index, **known)
        ...     queue.push(z2, index)
        >>> len(queue)
        16
    """

    owner: Tensor
    view: Tensor
    next_slot: Tensor

    def __init__(self, length: int, embedding_dim: int | None = None) -> None:
        super().__init__()
        length = check_count("length", length)
        self.embeddings = EmbeddingTable(length, width=embedding_dim, per_sample=False)
        # Sample of each slot, and its view.
        self.register_table("owner", length, fill=NOBODY)
        self.register_table("view", length, fill=0)
        self.register_table("next_slot", fill=0)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """See `PreciseModule.check_saved`."""
        super().check_saved(saved)
        slots = len(self.owner)
        for name, low, high in (("owner", NOBODY, LARGEST), ("view", 0, math.inf), ("next_slot", 0, slots - 1)):
            if name in saved:
                check_entries(name, saved[name], low, high)

    def __len__(self) -> int:
        return int((self.owner >= 0).sum())

    @property
    def negatives(self) -> Tensor:
        """(M, D) embeddings in the queue."""
        return self.embeddings.rows[self.owner >= 0]

    @property
    def negatives_index(self) -> Tensor:
        """(M,) sample of each embedding in the queue."""
        return self.owner[self.owner >= 0]

    @torch.no_grad()
    def push(self, features: Tensor, index: Tensor, view: int | Tensor = 0) -> None:
        """Replace the oldest embeddings; an embedding that is not finite leaves its slot unchanged.

        Args:
            features: (M, D) embeddings, detached here.
            index: (M,) position of each embedding in the dataset.
            view: View of each embedding, or one view for all.

        Raises:
            ValueError: Shapes do not fit, or earlier features had another width.
            TypeError: Features are not floating-point, or ``index`` holds no integers.
        """
        check_features("features", features, (2,))
        check_integers("index", index, len(features))
        self.embeddings.fit(features.shape[1])
        slots, device = len(self.owner), self.owner.device
        view = torch.as_tensor(view, device=device).expand(len(features))[-slots:]
        features, index = features.detach()[-slots:], index.to(device)[-slots:]
        place = (self.next_slot + torch.arange(len(features), device=device)) % slots
        sound = torch.isfinite(features).all(1) & (index >= 0)
        rows = self.embeddings.rows
        rows[place] = torch.where(sound[:, None], features.to(rows), rows[place])
        self.owner[place] = torch.where(sound, index, self.owner[place])
        self.view[place] = torch.where(sound, view, self.view[place])
        self.next_slot.copy_(torch.where(sound.any(), self.next_slot + len(features), self.next_slot) % slots)


@samplers.register(
    "queue",
    title="A queue of past batches",
    summary="All rows of the batch and of a queue of past batches, weighted by the softmax of their scores.",
    paper="He et al., CVPR 2020, section 3.2. arXiv:1911.05722",
    equation=r"w_n = \frac{e^{s_{an}/\tau}}{\sum_{m \in \mathrm{batch} \cup \mathrm{queue}} e^{s_{am}/\tau}}",
    needs={"index"},
    stateful=True,
    ranges={"num_negatives": Range(1)},
    differences=(
        "The batch itself is included, so the first step has negatives.",
        "No momentum encoder is included.",
        "All processes hold the whole queue, whose length does not grow with the dataset; tables='sharded' raises.",
    ),
)
class QueueSampler(NegativeSampler):
    r"""All rows of other samples in the batch and in a queue of past batches, weighted by the softmax of their scores.

    $$w_n = \frac{e^{s_{an}/\tau}}{\sum_{m \in \mathrm{batch} \cup \mathrm{queue}} e^{s_{am}/\tau}}$$

    No random numbers are drawn: the queue is a uniform sample of the dataset if the batches are, and its length bounds the age
    of its rows. Rows of the batch get a gradient, rows of the queue are constants; both views of a batch enter the queue after
    the batch is contrasted. `log_mean` is the logarithm of the mean of $e^{s/\tau}$ over batch and queue; its gradient equals
    the weighted gradient.

    Args:
        num_negatives: Length of the queue.
        embedding_dim: See `FeatureQueue`.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("queue", num_negatives=8).law
        'softmax(s / temperature) over the rows of other samples in the last batches'
    """

    law = "softmax(s / temperature) over the rows of other samples in the last batches"

    def __init__(self, *, num_negatives: int = 4096, embedding_dim: int | None = None) -> None:
        super().__init__()
        self.queue = FeatureQueue(check_count("num_negatives", num_negatives), embedding_dim)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """See `PreciseModule.check_saved`."""
        super().check_saved(saved)
        if "queue.view" in saved:
            check_entries("queue.view", check_table("queue.view", saved["queue.view"], self.queue.view), 0, 1)

    def sample(self, batch: Batch, scale: Tensor) -> Negatives:
        """See `NegativeSampler.sample`."""
        x, samples, others = batch.x, data_rows(batch) // 2, has_negatives(batch)
        self.queue.embeddings.fit(x.shape[1])
        log_sum, mean = self._softmax(batch, scale.detach(), samples)
        pull = torch.linalg.vecdot(x, mean) * scale
        queued = log_sum + (pull - pull.detach())
        total = logaddexp(batch.logsumexp(scale).flatten(), queued)
        count = batch.negatives_count().expand(-1, 2).flatten() + self._in_queue(samples)
        log_mean = torch.where(others, total.detach() - count.clamp_min(1).to(x).log(), -torch.inf)
        listing = self._listing(batch, scale)
        self.queue.push(x, torch.where(others, samples, NOBODY), data_rows(batch) % 2)
        share = torch.where(others, (queued - total).detach().exp(), 0).mean()
        return Negatives(total, log_mean, listing, {"in_batch_share": 1 - share})

    def _softmax(self, batch: Batch, scale: Tensor, samples: Tensor) -> tuple[Tensor, ...]:
        """`memory_softmax` over the queue for all anchors; each process computes a part of the anchors."""
        keys, owner = self.queue.embeddings.rows, self.queue.owner
        return batch.pairs.on_rows(
            lambda x, anchors: tuple(memory_softmax(x[anchors], scale, samples[anchors], keys, owner)), batch.x.detach()
        )

    def _in_queue(self, samples: Tensor) -> Tensor:
        """(N,) number of queue slots that hold a sample other than the anchor's own."""
        ordered = self.queue.owner.sort().values
        mine = torch.searchsorted(ordered, samples, right=True) - torch.searchsorted(ordered, samples)
        return (ordered >= 0).sum() - mine

    def _listing(self, batch: Batch, scale: Tensor) -> Callable[[], WeightedNegatives]:
        x, row, queue, scale = batch.x.detach(), data_rows(batch), self.queue, scale.detach()
        keys, rows = torch.cat([x, queue.embeddings.rows.to(x)]), torch.cat([row, _rows(queue)])

        def listing() -> WeightedNegatives:
            excluded = (rows // 2 == row[:, None] // 2) | (rows < 0)
            weights = (scale * x @ keys.T).masked_fill(excluded, -torch.inf).softmax(1)
            in_batch = torch.arange(len(rows), device=x.device) < len(x)
            return WeightedNegatives(torch.where(excluded, NOBODY, rows), weights, in_batch.expand_as(weights))

        return listing

    def table(self) -> dict[str, Tensor]:
        """``embeddings`` (length, D), ``index`` and ``view`` (length,), oldest first; index -1 for slots not filled yet."""
        queue = self.queue
        order = (queue.next_slot + torch.arange(len(queue.owner), device=queue.owner.device)) % len(queue.owner)
        held = {"embeddings": queue.embeddings.rows, "index": queue.owner, "view": queue.view}
        return {name: tensor[order].cpu() for name, tensor in held.items()}

    def load_table(self, *, embeddings: Tensor, index: Tensor, view: Tensor) -> None:
        """Load the result of `table`.

        Raises:
            TypeError: A table is no tensor, or of another kind.
            ValueError: A size does not fit, an embedding is not finite, or an entry is out of range.
        """
        queue = self.queue
        check_table("embeddings", embeddings, queue.embeddings.rows)
        check_entries("index", check_table("index", index, queue.owner), NOBODY, LARGEST)
        check_entries("view", check_table("view", view, queue.view), 0, 1)
        if (
            not embeddings.dim()
            or not index.dim()
            or not view.dim()
            or not len(embeddings) == len(index) == len(view) == len(queue.owner)
            or embeddings.dim() != 2
        ):
            raise ValueError(
                f"embeddings, index and view must have length {len(queue.owner)}, "
                f"got {shape(embeddings)}, {shape(index)} and {shape(view)}."
            )
        queue.embeddings.load(embeddings)
        queue.owner.copy_(index)
        queue.view.copy_(view)
        queue.next_slot.zero_()


def _rows(queue: FeatureQueue) -> Tensor:
    """(M,) row of the dataset, 2 * sample + view, in each slot; -1 for an empty slot."""
    return torch.where(queue.owner >= 0, 2 * queue.owner + queue.view, NOBODY)
