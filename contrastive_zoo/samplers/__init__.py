"""Negative samplers and their components."""

from typing import Any

from contrastive_zoo.checks import check_count
from contrastive_zoo.registry import STATE_PARAMETERS, Card, keyword_parameters
from contrastive_zoo.registry import samplers as registry
from contrastive_zoo.samplers.base import Negatives, NegativeSampler, WeightedNegatives
from contrastive_zoo.samplers.gumbel import GumbelSampler, des_raj_weights
from contrastive_zoo.samplers.mcmc import ChainSampler
from contrastive_zoo.samplers.metropolis_hastings import metropolis_hastings
from contrastive_zoo.samplers.queue_ import FeatureQueue, QueueSampler
from contrastive_zoo.samplers.topk import TopKSampler
from contrastive_zoo.samplers.uniform import UniformSampler

__all__ = [
    "ChainSampler",
    "FeatureQueue",
    "GumbelSampler",
    "NegativeSampler",
    "Negatives",
    "QueueSampler",
    "TopKSampler",
    "UniformSampler",
    "WeightedNegatives",
    "des_raj_weights",
    "describe_sampler",
    "get_sampler",
    "list_samplers",
    "metropolis_hastings",
    "register_sampler",
]


def get_sampler(
    name: str, *, num_samples: int | None = None, embedding_dim: int | None = None, seed: int = 0, **params: Any
) -> Any:
    """Make a negative sampler by name.

    Args:
        name: One of `list_samplers()`.
        num_samples: Size of the dataset; ignored by samplers without state per sample.
        embedding_dim: Features per embedding, for samplers that keep embeddings; by default taken from the first batch, or
            from a checkpoint.
        seed: Random seed; ignored by samplers that use no randomness.
        **params: Parameters of the sampler, see `describe_sampler(name)`.

    Raises:
        ValueError: Unknown name, or a value out of range.
        TypeError: Unknown or missing parameter.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_sampler("gumbel", num_samples=100, num_negatives=4)
        >>> loss_fn = zoo.get_loss("sampled", num_samples=100, sampler=sampler)
    """
    card = registry.card(name)
    taken = keyword_parameters(card.build)
    common: dict[str, int | None] = {}
    if "seed" in taken:
        common["seed"] = seed
    if "embedding_dim" in taken:
        common["embedding_dim"] = embedding_dim
    if "num_samples" in taken:
        if num_samples is None:
            raise TypeError(f"{card.name!r} keeps something for each sample: pass num_samples=len(dataset).")
        common["num_samples"] = check_count("num_samples", num_samples)
    return card.build(**registry.parameters(card, params, STATE_PARAMETERS), **common)


def list_samplers() -> list[str]:
    """Names of all negative samplers, plugins included."""
    return registry.names()


def describe_sampler(name: str) -> Card:
    """Summary of a negative sampler.

    Raises:
        ValueError: Unknown name.
    """
    return registry.card(name)


register_sampler = registry.register
