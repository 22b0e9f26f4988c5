"""Arguments and results of every negative sampler."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.batch.call import Call
from contrastive_zoo.batch.make import BatchMaker
from contrastive_zoo.batch.options import Options
from contrastive_zoo.checks import check_choice, check_count, check_features, check_integers, check_same
from contrastive_zoo.operators import without_autocast
from contrastive_zoo.state.modules import PreciseModule
from contrastive_zoo.state.temperature import Temperature

# Maps (n,) positions in the dataset and (n,) views to features (n, D).
Encode = Callable[[Tensor, Tensor], Tensor]


class WeightedNegatives(NamedTuple):
    """A list of the negatives of N anchors.

    Attributes:
        rows: (N, K) int64 rows of the dataset, 2 * sample + view; -1 for no negative.
        weights: (N, K) weights, 0 for no negative; the weights of an anchor sum to 1.
        in_batch: (N, K) whether the negative is a row of the batch, which gets a gradient; if not, the sampler stores it.
    """

    rows: Tensor
    weights: Tensor
    in_batch: Tensor


class Negatives(NamedTuple):
    r"""Result of a sampler for N anchors.

    Attributes:
        surrogate: (N,) a tensor whose gradient is $\sum_k w_k \nabla (s_{ak} / \tau)$ over the negatives k of anchor a, with
            respect to the anchor and to negatives that are rows of the batch; its value is meaningless.
        log_mean: (N,) the sampler's estimate of the logarithm of the mean of $e^{s/\tau}$ over the negatives in the dataset;
            -inf for an anchor without a negative in the batch.
        listing: Makes the list of the negatives and their weights; a training step does not need this list.
        diagnostics: Detached statistics for `loss_fn.diagnostics`.
    """

    surrogate: Tensor
    log_mean: Tensor
    listing: Callable[[], WeightedNegatives]
    diagnostics: dict[str, Tensor]


class NegativeSampler(PreciseModule):
    """Base class of negative samplers, which find negatives for the rows of a batch and may keep state between batches.

    Call a sampler with the features of two views to get negatives and weights for a custom training loop; the objective
    `sampled` and other global objectives call `sample`. Subclasses implement `sample`, keep state in buffers
    (`register_table`), and compute random draws from a seed, a step and the position in the batch
    (`contrastive_zoo.samplers.randomness`). The methods ``table()`` and ``load_table(**tables)`` of the loss call the
    sampler's methods of the same names, which are optional.

    Attributes:
        law: The distribution over rows of other samples that the weighted negatives represent.
        num_samples: Size of the dataset, for samplers with state per sample; else None.
    """

    law: ClassVar[str] = ""
    num_samples: int | None = None

    def resize(self, num_samples: int) -> None:
        """Make room for a dataset that has grown: new samples have not been visited, all others keep their state.

        Args:
            num_samples: New size of the dataset, not below the present one.

        Raises:
            ValueError: The new size is below the present one.
        """
        if self.num_samples is not None:
            check_count("num_samples", num_samples, low=self.num_samples)
        super().resize(num_samples)
        if self.num_samples is not None:
            self.num_samples = num_samples

    @torch.no_grad()
    def forward(self, z1: Tensor, z2: Tensor, *, index: Tensor, temperature: float | Tensor = 0.1) -> WeightedNegatives:
        """Find weighted negatives for each row of two views; advances the state, like a step of a loss.

        Anchor 2 i + v of the N = 2B anchors is sample i in view v. A negative is the row 2 * sample + view of the dataset; its
        features come from the batch or from the sampler's state.

        Args:
            z1: (B, D) features of the first view, any float dtype, not normalised.
            z2: (B, D) features of the second.
            index: (B,) integers, positions in the dataset.
            temperature: Positive; the law of most samplers is a softmax of similarities / temperature.

        Returns:
            Rows of the dataset, their weights, and whether they are in the batch, (N, K) each.

        Raises:
            TypeError: An argument is no tensor or has the wrong dtype.
            ValueError: Shapes or devices do not fit, features are NaN or infinite, or the temperature is not positive.
            IndexError: A position is outside the dataset.
            RuntimeError: The sampler's table is sharded over processes.

        Examples:
            >>> import torch
            >>> import contrastive_zoo as zoo
            >>> sampler = zoo.get_sampler("topk", num_samples=100, num_negatives=4)
            >>> z1, z2 = torch.randn(2, 8, 16)
            >>> negatives = sampler(z1, z2, index=torch.arange(8))
            >>> negatives.rows.shape, torch.allclose(negatives.weights.sum(1), torch.ones(16))
            (torch.Size([16, 4]), True)
        """
        if self.divided_shapes():
            raise RuntimeError("a sampler whose table is sharded over processes is called by its loss only.")
        held = Temperature(temperature)
        check_features("z1", z1, (2,))
        check_features("z2", z2, (2,))
        check_same("z1", z1, "z2", z2)
        check_integers("index", index, len(z1))
        maker = BatchMaker(Options(num_samples=self.num_samples), needs_index=True)
        batch = maker.make(Call(z1, z2, index, None, None, None), training=True)
        with without_autocast(batch.x):
            return self.sample(batch, 1 / held.bounded()).listing()

    def sample(self, batch: Batch, scale: Tensor) -> Negatives:
        """Negatives for the rows of a training batch of two views; advances the state.

        Args:
            batch: Rows, their ids, and positions in the dataset.
            scale: 0-dim, 1 / temperature.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sample(batch, scale).")


def check_encode(encode: Encode | None) -> Encode | None:
    """Check and return the callable that encodes samples outside the batch.

    For a module, return only its bound ``__call__``, so that the module's parameters do not become the sampler's parameters.

    Raises:
        TypeError: ``encode`` cannot be called.
    """
    if encode is not None and not callable(encode):
        raise TypeError(f"encode must be a callable (index, view) -> features (n, D), got {type(encode).__name__}.")
    return encode.__call__ if isinstance(encode, nn.Module) else encode


def check_out_of_batch(*, out_of_batch: str, encode: Encode | None, **_: object) -> None:
    """Raise unless `out_of_batch` and `encode` are consistent.

    Raises:
        ValueError: `encode` is missing or never called, or `out_of_batch` is unknown.
        TypeError: `encode` cannot be called.
    """
    check_choice("out_of_batch", out_of_batch, ("cache", "encode", "skip"))
    check_encode(encode)
    if out_of_batch == "encode" and encode is None:
        raise ValueError("out_of_batch='encode' needs encode: pass encode=..., a callable (index, view) -> features (n, D).")
    if out_of_batch != "encode" and encode is not None:
        raise ValueError(f"out_of_batch={out_of_batch!r} never calls encode: pass out_of_batch='encode', or no encode.")


def encode_rows(batch: Batch, encode: Encode, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Encode rows of the dataset, each once.

    Args:
        batch: The batch; features are normalised in the same way as its rows.
        encode: The encoder.
        rows: 2 * sample + view, or -1 for none; any shape.

    Returns:
        (n, D) features of the distinct rows, and the position of each of ``rows`` among them; any position for -1.

    Raises:
        ValueError: The encoder returned another shape.
        TypeError: The encoder returned no floating-point tensor.
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
    index = batch.placed(batch.index)
    return (2 * index[:, None] + torch.arange(2, device=index.device)).flatten()


def has_negatives(batch: Batch) -> Tensor:
    """(N,) whether the batch holds a sample other than the row's own."""
    return (batch.negatives_count() > 0).expand(-1, batch.views).flatten()
