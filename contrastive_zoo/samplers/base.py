"""What every negative sampler takes and returns."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.encoder import UserEncoder
from contrastive_zoo.batch.features import stack_views
from contrastive_zoo.batch.options import Options
from contrastive_zoo.batch.pairs import Pairs
from contrastive_zoo.batch.samples import sample_ids
from contrastive_zoo.checks import check_features, check_integers, check_same
from contrastive_zoo.state.modules import PreciseModule
from contrastive_zoo.state.temperature import Temperature

# From (n,) positions in the dataset and (n,) views to features (n, D).
Encode = Callable[[Tensor, Tensor], Tensor]


class WeightedNegatives(NamedTuple):
    """Negatives of each of N anchors, one by one.

    Attributes:
        rows: (N, K) int64 rows of the dataset, 2 * sample + view; -1 where there is no negative.
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
        log_mean: (N,) logarithm of the mean of $e^{s/\tau}$ over the negatives in the dataset, as far as the sampler can tell;
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

    Call it with the features of two views to get the negatives and their weights, for a loop of your own; `sampled` and its
    relatives call `sample`. Subclasses implement `sample`, keep state in buffers (`register_table`), and draw as a
    function of a seed, a step and the place in the batch (`contrastive_zoo.samplers.randomness`). ``table()`` and
    ``load_table(**tables)``, where they have them, serve the methods of these names of the loss.

    Attributes:
        law: The distribution over rows of other samples that the weighted negatives stand for.
        num_samples: Size of the dataset that it keeps something for, if it does.
    """

    law: ClassVar[str] = ""
    num_samples: int | None = None

    @torch.no_grad()
    def forward(self, z1: Tensor, z2: Tensor, *, index: Tensor, temperature: float | Tensor = 0.1) -> WeightedNegatives:
        """Find weighted negatives for each row of two views; moves the state on, as a step of a loss does.

        Anchor 2 i + v of the N = 2B anchors is sample i in view v. A negative is the row 2 * sample + view of the dataset; its
        features are in the batch, or the sampler's own.

        Args:
            z1: (B, D) features of the first view, any float dtype, not normalised.
            z2: (B, D) features of the second.
            index: (B,) integers, positions in the dataset.
            temperature: Positive; the law of most samplers is a softmax of similarities over it.

        Returns:
            Rows of the dataset, their weights, and whether they are in the batch, (N, K) each.

        Raises:
            TypeError: An argument is no tensor or has the wrong dtype.
            ValueError: Shapes or devices do not fit, features are NaN or infinite, or the temperature is not positive.
            IndexError: A position is outside the dataset.

        Examples:
            >>> import torch
            >>> import contrastive_zoo as zoo
            >>> sampler = zoo.get_sampler("topk", num_samples=100, num_negatives=4)
            >>> z1, z2 = torch.randn(2, 8, 16)
            >>> negatives = sampler(z1, z2, index=torch.arange(8))
            >>> negatives.rows.shape, torch.allclose(negatives.weights.sum(1), torch.ones(16))
            (torch.Size([16, 4]), True)
        """
        held = Temperature(temperature)
        batch = _batch_of(z1, z2, index, -1 if self.num_samples is None else self.num_samples)
        return self.sample(batch, 1 / held.bounded()).listing()

    def sample(self, batch: Batch, scale: Tensor) -> Negatives:
        """Negatives for the rows of a training batch of two views; moves the state on.

        Args:
            batch: Rows, who is who, and positions in the dataset.
            scale: 0-dim, 1 / temperature.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sample(batch, scale).")


def _batch_of(z1: Tensor, z2: Tensor, index: Tensor, num_samples: int) -> Batch:
    """Two views of features as a batch of one process."""
    check_features("z1", z1, (2,))
    check_features("z2", z2, (2,))
    check_same("z1", z1, "z2", z2)
    check_integers("index", index, len(z1))
    dtype = torch.promote_types(z1.dtype, z2.dtype)
    x, similarity = stack_views(z1, z2, "sphere", dtype, name="z1 or z2", validate=False, second_order=False)
    index = index.to(torch.int64)
    ids = sample_ids(index, num_samples, index.is_cpu)
    outside = UserEncoder(z1.device.type, None, dtype, Options())
    pairs = Pairs.unshared("auto", unit_rows=True, norm_bound=1.01)
    return Batch(
        x, ids.repeat_interleave(2), ids, views=2, pair_similarity=similarity, pairs=pairs, index=index, encode=outside
    )


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
    """Rows of the dataset, encoded anew, each once.

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
    """(N,) row of the dataset, 2 * sample + view, of each row of a batch."""
    assert batch.index is not None
    index = batch.index.to(batch.x.device)
    return (2 * index[:, None] + torch.arange(2, device=index.device)).flatten()


def has_negatives(batch: Batch) -> Tensor:
    """(N,) whether the batch holds another sample than the row's own."""
    return (batch.negatives_count() > 0).expand(-1, batch.views).flatten()
