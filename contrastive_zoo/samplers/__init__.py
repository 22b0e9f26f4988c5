"""Which negatives: samplers and what they are made of."""

from typing import Any

from contrastive_zoo.checks import check_count
from contrastive_zoo.registry import Card
from contrastive_zoo.registry import samplers as registry
from contrastive_zoo.samplers.mcmc import ChainSampler, SampledNegatives
from contrastive_zoo.samplers.metropolis_hastings import metropolis_hastings

__all__ = [
    "ChainSampler",
    "SampledNegatives",
    "describe_sampler",
    "get_sampler",
    "list_samplers",
    "metropolis_hastings",
    "register_sampler",
]


def get_sampler(name: str, *, seed: int = 0, **params: Any) -> Any:
    """Make the negative sampler behind a name.

    Args:
        name: One of `list_samplers()`.
        seed: Seed of its draws.
        **params: Its parameters, see `describe_sampler(name)`.

    Raises:
        ValueError: Unknown name, or a value out of range.
        TypeError: Unknown parameter.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.get_sampler("mcmc", burn_in=0.25)
        ChainSampler(burn_in=0.25, seed=0)
    """
    card = registry.card(name)
    check_count("seed", seed, low=0)
    return card.build(**registry.parameters(card, params, ("seed",)), seed=seed)


def list_samplers() -> list[str]:
    """Names of all negative samplers, plugins included."""
    return registry.names()


def describe_sampler(name: str) -> Card:
    """What there is to know about a negative sampler.

    Raises:
        ValueError: Unknown name.
    """
    return registry.card(name)


register_sampler = registry.register
