r"""Sampled: the contrastive loss over the whole dataset, with negatives from any sampler.

    l_a = -s_ap/tau + log 1/|N_a| sum_{n in N_a} exp(s_an/tau),    gradient -grad s_ap/tau + sum_k w_k grad s_{a n_k}/tau

N_a are the rows of other samples in the dataset. The sampler finds the negatives n_k and their weights w_k, and estimates the
logarithm. EMC2 is this loss with the sampler "mcmc"; the negative cache is this loss with the sampler "gumbel".

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
eq. 2. arXiv:2404.10575
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from contrastive_zoo.batch.batch import Batch
from contrastive_zoo.objectives.averages import log_mean
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.registry import losses
from contrastive_zoo.registry import samplers as registry
from contrastive_zoo.samplers import NegativeSampler, get_sampler


class GlobalObjective(Objective):
    """The global contrastive loss, whose value and gradient a sampler estimates separately.

    In `eval()` the loss is the in-batch form, -s_ap/tau + log of the mean of exp(s/tau) over the batch, without the sampler.

    Args:
        sampler: Finds the negatives.
        temperature: Divides the similarities.
    """

    def __init__(self, sampler: NegativeSampler, temperature: float | Tensor) -> None:
        super().__init__(temperature)
        self.sampler = sampler

    def forward(self, batch: Batch) -> Tensor:
        """See `Objective.forward`."""
        scale = 1 / self.temperature
        positive = batch.positive_similarity() * scale
        if not self.training:
            return log_mean(batch, scale) - positive
        negatives = self.sampler.sample(batch, scale)
        batch.diagnostics.update(negatives.diagnostics)
        value = negatives.log_mean + (negatives.surrogate - negatives.surrogate.detach())
        return batch.per_view(value) - positive

    @property
    def seed(self) -> int:
        """Random seed of the sampler."""
        return self.sampler.seed

    @seed.setter
    def seed(self, value: int) -> None:
        self.sampler.seed = value

    def table(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """The sampler's table."""
        read = self._of_sampler("table")
        tables: dict[str, Tensor] = read() if index is None else read(index)
        return tables

    def load_table(self, **tables: Tensor) -> None:
        """Load the result of `table`."""
        self._of_sampler("load_table")(**tables)

    def _of_sampler(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(self.sampler, name, None)
        if method is None:
            raise TypeError(f"{type(self.sampler).__name__} has no table. Its state is in state_dict().")
        return method


@losses.register(
    "sampled",
    title="Global contrastive loss with sampled negatives",
    summary="Contrasts with the whole dataset through weighted negatives from any sampler.",
    paper="Yau et al., ICML 2024, eq. 2. arXiv:2404.10575",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}, "
    r"\quad \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau} + \sum_k w_k \frac{\nabla s_{an_k}}{\tau}",
    needs={"index"},
    stateful=True,
    draws=True,
    scale="Same scale as sogclr, emc2 and negative_cache. No authors' code computes this loss.",
)
class Sampled(GlobalObjective):
    r"""Loss of each anchor, (B, 2); value and gradient are different estimates, joined.

    $$\ell_a = -\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau},
      \quad \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau} + \sum_k w_k \frac{\nabla s_{an_k}}{\tau}$$

    The negatives $n_k$ and weights $w_k$ come from the sampler; the sampler's documentation states their law. The value is
    $-s_{ap}/\tau$ plus the sampler's estimate of $\log \frac{1}{|\mathcal{N}_a|} \sum_n e^{s_{an}/\tau}$.

    In `eval()` the loss is the in-batch form: the sampler is not called, no table is read or written, and no random numbers
    are drawn.

    Args:
        num_samples: Size of the dataset.
        temperature: Divides the similarities.
        sampler: One of `list_samplers()`; or a sampler object, which has its own settings, including its seed.
        num_negatives: Negatives per anchor, for a sampler given by name; by default the sampler's own default.
        embedding_dim: Features per embedding, for a sampler given by name that keeps embeddings; by default taken from the
            first batch, or from a checkpoint.
        seed: Random seed, for a sampler given by name.

    Raises:
        ValueError: The sampler is unknown or for another number of samples, or ``num_negatives`` is set for a sampler object.
        TypeError: ``sampler`` is neither a name nor a sampler, or the named sampler takes no ``num_negatives``.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("sampled", num_samples=100, sampler="topk", num_negatives=4)
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> loss = loss_fn(z1, z2, index=torch.arange(8))
    """

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float | Tensor = 0.1,
        sampler: str | NegativeSampler = "uniform",
        num_negatives: int | None = None,
        embedding_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(sampler, str):
            given = {} if num_negatives is None else {"num_negatives": num_negatives}
            sampler = get_sampler(sampler, num_samples=num_samples, embedding_dim=embedding_dim, seed=seed, **given)
        elif num_negatives is not None or embedding_dim is not None:
            raise ValueError(
                "num_negatives and embedding_dim go with the name of a sampler: pass them where the sampler is made."
            )
        if not isinstance(sampler, NegativeSampler):
            names = ", ".join(registry.names())
            raise TypeError(f"sampler must be a NegativeSampler or one of {names}, got {type(sampler).__name__}.")
        if sampler.num_samples not in (None, num_samples):
            made_for = sampler.num_samples
            raise ValueError(f"sampler was made for {made_for} samples and the loss for {num_samples}: give both the same.")
        super().__init__(sampler, temperature)
