"""What every negative sampler takes and returns."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_zoo.batch import Batch
from contrastive_zoo.state import PreciseModule

# From (n,) positions in the data set and (n,) views to features (n, D).
Encode = Callable[[Tensor, Tensor], Tensor]


class WeightedNegatives(NamedTuple):
    """Negatives of each of N anchors, one by one.

    Attributes:
        rows: (N, K) int64 rows of the data set, 2 * sample + view; -1 where there is no negative.
        weights: (N, K) weights, 0 where there is no negative; those of an anchor add up to 1.
        in_batch: (N, K) whether the features are a row of the batch, which gets gradient; if not they are the sampler's own.
    """

    rows: Tensor
    weights: Tensor
    in_batch: Tensor


class Negatives(NamedTuple):
    r"""What a sampler finds for each of N anchors.

    Attributes:
        surrogate: (N,) its gradient is $\sum_k w_k \nabla (s_{ak} / \tau)$ over the negatives k of anchor a, in the anchor and
            in those negatives that are rows of the batch; its value means nothing.
        log_mean: (N,) logarithm of the mean of $e^{s/\tau}$ over the negatives in the data set, as far as the sampler can tell;
            -inf for an anchor without a negative in the batch.
        listing: Makes the list of the negatives and their weights, which a step does not need.
        diagnostics: Detached figures for `loss_fn.diagnostics`.
    """

    surrogate: Tensor
    log_mean: Tensor
    listing: Callable[[], WeightedNegatives]
    diagnostics: dict[str, Tensor]


class NegativeSampler(PreciseModule):
    """Base of negative samplers: finds negatives for the rows of a batch, and remembers what it needs between batches.

    Subclasses implement `forward`, keep state in buffers, and draw from a generator that is seeded from a seed and a step.
    ``table()`` and ``load_table(**tables)``, where they have them, serve the methods of these names of the loss.

    Attributes:
        law: The distribution over rows of other samples that the weighted negatives stand for.
        num_samples: Size of the data set that it keeps something for, if it does.
    """

    law: ClassVar[str] = ""
    num_samples: int | None = None

    def forward(self, batch: Batch, scale: Tensor) -> Negatives:
        """Negatives for the rows of a training batch of two views; moves the state on.

        Args:
            batch: Rows, who is who, and positions in the data set.
            scale: 0-dim, 1 / temperature.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(batch, scale).")


def check_encode(encode: Encode | None) -> Encode | None:
    """What to call for features of samples outside of the batch.

    The parameters of an encoder are not the sampler's, so of a module only its call is returned.

    Raises:
        TypeError: ``encode`` cannot be called.
    """
    if encode is not None and not callable(encode):
        raise TypeError(f"encode must be a callable (index, view) -> features (n, D), got {type(encode).__name__}.")
    return encode.__call__ if isinstance(encode, nn.Module) else encode


def encode_rows(batch: Batch, encode: Encode, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the data set, encoded anew, each once.

    Args:
        batch: The batch, as whose rows they are normalised.
        encode: The encoder.
        rows: 2 * sample + view, or -1 for none; any shape.

    Returns:
        (n, D) features of the different rows, and the place among them of each of ``rows``, any place for -1.

    Raises:
        ValueError: The encoder returned another shape.
        TypeError: It returned no floating-point tensor.
    """
    assert batch.index is not None
    assert batch.encode is not None
    different, place = rows.unique(return_inverse=True)
    missing = int(bool((different < 0).any()))  # -1 comes first
    different = different[missing:].to(batch.index.device)
    features = batch.encode(encode, different // 2, different % 2, batch.x)
    return features if len(features) else batch.x.new_zeros(1, batch.x.shape[1]), (place - missing).clamp_min(0)


def data_rows(batch: Batch) -> Tensor:
    """(N,) row of the data set, 2 * sample + view, of each row of a batch."""
    assert batch.index is not None
    index = batch.index.to(batch.x.device)
    return (2 * index[:, None] + torch.arange(2, device=index.device)).flatten()


def has_negatives(batch: Batch) -> Tensor:
    """(N,) whether the batch holds another sample than the row's own."""
    return (batch.negatives_count() > 0).expand(-1, batch.views).flatten()
