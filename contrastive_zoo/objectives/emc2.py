r"""EMC2: the contrastive loss over the whole dataset, with negatives from a Markov chain per sample and view.

    grad l_a = -grad s_ap/tau + E_{n ~ softmax(s_a/tau)} grad s_an/tau

The expectation is over all rows of other samples in the dataset. A Metropolis-Hastings chain per (sample, view) has this
softmax as its target: the chain walks over the rows of each batch that holds the sample, and keeps its state until the next
visit.

Yau et al., "EMC2: Efficient MCMC Negative Sampling for Contrastive Learning with Global Convergence", ICML 2024,
algorithm 1. arXiv:2404.10575
"""

from torch import Tensor

from contrastive_zoo.objectives.sampled import GlobalObjective
from contrastive_zoo.registry import Range, losses
from contrastive_zoo.samplers.base import Encode, check_out_of_batch
from contrastive_zoo.samplers.mcmc import ChainSampler


@losses.register(
    "emc2",
    title="EMC2, efficient MCMC negative sampling",
    summary="Contrasts with the whole dataset through negatives from a Markov chain per sample and view.",
    paper="Yau et al., ICML 2024, algorithm 1. arXiv:2404.10575",
    equation=r"\ell_a = -\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau}, "
    r"\quad \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau} "
    r"+ \mathrm{E}_{n \sim \mathrm{softmax}(s_a/\tau)} \frac{\nabla s_{an}}{\tau}",
    needs={"index"},
    stateful=True,
    draws=True,
    ranges={"burn_in": Range(0, 1, open_high=True)},
    check=check_out_of_batch,
    scale="Equal to the authors' gradient, except that their burn-in is one column longer.",
    differences=(
        "Each view has its own chain; the authors pass one chain per sample from view 1 to view 2.",
        "Rows are proposed in a new random order at every step; the authors' code proposes them in batch order, which deviates "
        "more from the softmax.",
        "The carried state is scored again for the current anchor, from a cache of last embeddings or by encoding it; the "
        "authors' code keeps the old score (as does out_of_batch='skip').",
        "Exactly nb - k of the nb valid columns are kept; the authors' code drops one more and divides carried states by nb.",
        "Scores are compared in log space; columns of the anchor's own sample, duplicates included, are never accepted.",
        "With out_of_batch='cache' a kept carried state has a constant embedding, so only the anchor gets a gradient; with "
        "'encode' both get one. The caller decides how to encode the sample; the authors' code encodes without augmentation.",
        "The value estimates the global objective; the authors return a surrogate that is only useful for its gradient.",
    ),
)
class EMC2(GlobalObjective):
    r"""Loss of each anchor, (B, 2); value and gradient are different estimates, joined.

    $$\ell_a = -\frac{s_{ap}}{\tau} + \log \frac{1}{|\mathcal{N}_a|} \sum_{n \in \mathcal{N}_a} e^{s_{an}/\tau},
      \quad \nabla \ell_a = -\frac{\nabla s_{ap}}{\tau}
      + \mathrm{E}_{n \sim \mathrm{softmax}(s_a/\tau)} \frac{\nabla s_{an}}{\tau}$$

    The gradient of anchor a is $-\nabla s_{ap}/\tau$ plus the mean of $\nabla s_{an}/\tau$ over the kept states n of its
    chain. The value is $-s_{ap}/\tau + \log u$, where $u$ is a running mean per sample of the batch's mean of
    $e^{s_{an}/\tau}$.

    Each row of the batch is proposed to a chain once, in a new random order at every step. A single proposal leaves the softmax
    invariant. If a batch covers most of the dataset, proposals are made without replacement and the stationary law deviates
    slightly from the softmax. Enumeration of batches that are the whole dataset, for twelve random sets of four samples at
    temperatures from 0.1 to 1, gives a total variation of at most 0.09, against up to 0.50 in a fixed order.

    On NVIDIA GPUs kernels walk the chains, if rows are in float32 or half precision and have at most 256 features. Elsewhere,
    and with `backend="tiled"`, operations of PyTorch walk them: the same law with other draws.

    In `eval()` the batch's own mean replaces u; no table is read or written, and no random numbers are drawn.

    Args:
        num_samples: Size of the dataset.
        temperature: Divides the similarities.
        burn_in: Fraction of each batch's valid columns whose states are not kept, in [0, 1).
        out_of_batch: How to treat a state carried from an earlier batch. "cache": the state is scored for the current anchor
            by its last embedding, and contributes to the gradient of the anchor while it is kept; the cache holds an embedding
            per sample and view. "encode": the state is encoded again, and both the state and the anchor get a gradient. "skip":
            the state keeps the score that it was accepted with, and contributes no gradient; no embeddings are stored.
        encode: Required for "encode": a differentiable callable ``encode(index, view)`` that maps (n,) positions in the dataset
            and (n,) views, 0 or 1, to features (n, D). It is called once per step, with each carried state once, under the
            caller's autocast; its features are normalised like the batch. With several processes, each process may encode a
            part of the states: pass the encoder itself, not a wrapper that expects one call per step.
        embedding_dim: Features per embedding in the cache; by default taken from the first batch, or from a checkpoint.
        seed: Random seed.

    Raises:
        ValueError: A parameter is out of range or unknown, or ``encode`` is missing, or given but never called; at a
            call, ``encode`` returned an unexpected shape.
        TypeError: ``encode`` cannot be called; at a call, it did not return a floating-point tensor.

    Examples:
        >>> import torch
        >>> import contrastive_zoo as zoo
        >>> loss_fn = zoo.get_loss("emc2", num_samples=100, temperature=0.5)
        >>> z1, z2 = torch.randn(2, 8, 4)
        >>> loss = loss_fn(z1, z2, index=torch.arange(8))
        >>> 0 <= float(loss_fn.diagnostics["acceptance_rate"]) <= 1
        True
    """

    def __init__(
        self,
        *,
        num_samples: int,
        temperature: float | Tensor = 0.1,
        burn_in: float = 0.5,
        out_of_batch: str = "cache",
        encode: Encode | None = None,
        embedding_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        sampler = ChainSampler(
            num_samples=num_samples,
            burn_in=burn_in,
            out_of_batch=out_of_batch,
            encode=encode,
            embedding_dim=embedding_dim,
            seed=seed,
        )
        super().__init__(sampler, temperature)
