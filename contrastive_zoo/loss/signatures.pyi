"""Signature of `get_loss` for each name, written by tools/write_signatures.py: do not edit."""

# mypy: disable-error-code="overload-overlap"

from collections.abc import Callable
from typing import Any, Literal, overload

from torch import Tensor
from torch.distributed import ProcessGroup

from contrastive_zoo.loss.module import Loss
from contrastive_zoo.samplers.base import NegativeSampler

class WrongParameters:
    """In place of a loss where a name has no such parameter, or one of another type: the call raises."""

@overload
def get_loss(
    name: Literal["alignment_uniformity"],
    *,
    alpha: float = 2.0,
    t: float = 2.0,
    weight: float = 1.0,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Alignment and uniformity.

    Mean distance of the views plus the logarithm of the mean Gaussian potential of each view.
    """

@overload
def get_loss(
    name: Literal["clip"],
    *,
    init_scale: float = 14.285714285714285,
    max_scale: float = 100.0,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """CLIP's contrastive loss.

    InfoNCE between two modalities with a learned temperature.
    """

@overload
def get_loss(
    name: Literal["dcl"],
    *,
    temperature: Tensor | float = 0.1,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Decoupled contrastive loss.

    NT-Xent without the positive in the denominator, so easy positives do not shrink the gradient.
    """

@overload
def get_loss(
    name: Literal["dclw"],
    *,
    temperature: Tensor | float = 0.1,
    sigma: float = 0.5,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Decoupled contrastive loss with weighted positives.

    DCL with distant positives weighted up and close positives weighted down.
    """

@overload
def get_loss(
    name: Literal["debiased"],
    *,
    temperature: Tensor | float = 0.5,
    tau_plus: float = 0.1,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Debiased contrastive loss.

    NT-Xent corrected for negatives that belong to the anchor's own class.
    """

@overload
def get_loss(
    name: Literal["dhel"],
    *,
    temperature: Tensor | float = 0.3,
    both_views: bool = True,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Decoupled hyperspherical energy loss.

    Alignment of the views plus the energy within each view, without negatives across the views.
    """

@overload
def get_loss(
    name: Literal["emc2"],
    *,
    temperature: float | Tensor = 0.1,
    burn_in: float = 0.5,
    out_of_batch: str = "cache",
    encode: Callable[[Tensor, Tensor], Tensor] | None = None,
    num_samples: int,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """EMC2, efficient MCMC negative sampling.

    Contrasts with the whole dataset through negatives from a Markov chain per sample and view.
    """

@overload
def get_loss(
    name: Literal["hcl"],
    *,
    temperature: Tensor | float = 0.5,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Contrastive learning with hard negatives.

    NT-Xent with debiased negatives; harder negatives weigh more.
    """

@overload
def get_loss(
    name: Literal["hscl"],
    *,
    beta: float = 1.0,
    num_negatives: int | None = None,
    self_positive: bool = True,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Generalised supervised contrastive loss with hard negatives.

    SCL with negatives similar to the anchor weighted up.
    """

@overload
def get_loss(
    name: Literal["hucl"],
    *,
    beta: float = 1.0,
    num_negatives: int | None = None,
    self_positive: bool = True,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Generalised unsupervised contrastive loss with hard negatives.

    UCL with rows similar to the anchor weighted up.
    """

@overload
def get_loss(
    name: Literal["infonce"],
    *,
    temperature: Tensor | float = 0.1,
    symmetric: bool = True,
    in_batch: bool = True,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """InfoNCE.

    Softmax cross-entropy: find the partner among the rows of the other view and any extra negatives.
    """

@overload
def get_loss(
    name: Literal["isogclr"],
    *,
    temperature: float | Tensor = 0.1,
    gamma: float | Callable[[Tensor], Tensor | float] = 0.9,
    intra_view: bool = True,
    rho: float = 0.3,
    eta: float = 0.01,
    temperature_min: float = 0.05,
    temperature_max: float = 0.7,
    momentum: float = 0.1,
    num_samples: int,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """iSogCLR, SogCLR with individual temperatures.

    SogCLR with a separate learned temperature for each sample.
    """

@overload
def get_loss(
    name: Literal["kcl"],
    *,
    kernel: str = "gaussian",
    t: float = 2.0,
    gamma: float = 16.0,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Kernel contrastive loss.

    Alignment and spread by a kernel; its expected value does not depend on the batch size.
    """

@overload
def get_loss(
    name: Literal["negative_cache"],
    *,
    temperature: float | Tensor = 0.1,
    num_negatives: int = 16,
    encode: Callable[[Tensor, Tensor], Tensor] | None = None,
    num_samples: int,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Negative cache, Gumbel-max sampling over stale embeddings.

    Contrasts with the whole dataset through negatives drawn from the softmax over a cache of last embeddings.
    """

@overload
def get_loss(
    name: Literal["ntxent", "simclr"],
    *,
    temperature: Tensor | float = 0.1,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """NT-Xent, the loss of SimCLR.

    Softmax cross-entropy: find the other view among all other rows of the batch.
    """

@overload
def get_loss(
    name: Literal["sampled"],
    *,
    temperature: float | Tensor = 0.1,
    sampler: str | NegativeSampler = "uniform",
    num_negatives: int | None = None,
    num_samples: int,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Global contrastive loss with sampled negatives.

    Contrasts with the whole dataset through weighted negatives from any sampler.
    """

@overload
def get_loss(
    name: Literal["scl"],
    *,
    num_negatives: int | None = None,
    self_positive: bool = True,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Generalised supervised contrastive loss.

    Each row of the anchor's class against the mean over the rows of other classes.
    """

@overload
def get_loss(
    name: Literal["siglip"],
    *,
    init_scale: float = 10.0,
    init_bias: float = -10.0,
    max_scale: float = 100.0,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """SigLIP, the pairwise sigmoid loss.

    Logistic regression on every cross-view pair: same sample or not; scale and bias are learned.
    """

@overload
def get_loss(
    name: Literal["sogclr"],
    *,
    temperature: float | Tensor = 0.1,
    gamma: float | Callable[[Tensor], Tensor | float] = 0.9,
    intra_view: bool = True,
    num_samples: int,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """SogCLR, stochastic optimisation of the global contrastive loss.

    Contrasts with the whole dataset through a moving average per sample; works with small batches.
    """

@overload
def get_loss(
    name: Literal["spectral_contrastive"],
    *,
    radius: float = 1.0,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Spectral contrastive loss.

    Makes views similar and different samples orthogonal; cost is linear in the batch size.
    """

@overload
def get_loss(
    name: Literal["supcon"],
    *,
    temperature: Tensor | float = 0.1,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Supervised contrastive loss.

    Every row of the anchor's class is a positive; needs labels.
    """

@overload
def get_loss(
    name: Literal["ucl"],
    *,
    num_negatives: int | None = None,
    self_positive: bool = True,
    num_samples: int | None = None,
    normalize: Literal["sphere", "ball", "none"] | bool = "sphere",
    reduction: Literal["mean", "sum", "none"] = "mean",
    backend: str = "auto",
    gather: Literal["auto", "ring"] | bool = "auto",
    gather_negatives: bool = False,
    process_group: ProcessGroup | None = None,
    tables: Literal["replicated", "sharded"] = "replicated",
    embedding_dim: int | None = None,
    seed: int = 0,
    validate: bool = False,
    on_empty: Literal["warn", "error"] = "warn",
) -> Loss:
    """Generalised unsupervised contrastive loss.

    Each positive against the mean over all rows, log(1 + mean) in place of a softmax.
    """

@overload
def get_loss(
    name: Literal[
        "alignment_uniformity",
        "clip",
        "dcl",
        "dclw",
        "debiased",
        "dhel",
        "emc2",
        "hcl",
        "hscl",
        "hucl",
        "infonce",
        "isogclr",
        "kcl",
        "negative_cache",
        "ntxent",
        "simclr",
        "sampled",
        "scl",
        "siglip",
        "sogclr",
        "spectral_contrastive",
        "supcon",
        "ucl",
    ],
    **params: Any,
) -> WrongParameters:
    """Wrong parameters."""

@overload
def get_loss(name: str, **params: Any) -> Loss:
    """Make a loss by the name of a plugin, or by a name that is not a literal."""
