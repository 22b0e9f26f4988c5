"""Batch samplers, which choose the samples that share a batch."""

from typing import Any

from contrastive_zoo.batch_samplers.assignment import balanced_assignment
from contrastive_zoo.batch_samplers.base import BatchSampler
from contrastive_zoo.batch_samplers.bisection import BisectionBatches
from contrastive_zoo.batch_samplers.combinations import CombinationBatches, unrank_combination
from contrastive_zoo.batch_samplers.cuts import CutBatches, Partition
from contrastive_zoo.batch_samplers.encoding import encode
from contrastive_zoo.batch_samplers.graph import loss_graph
from contrastive_zoo.batch_samplers.ordered import OrderedBatches, ordered_selection
from contrastive_zoo.batch_samplers.partitions import FixedBatches, FullBatch, ShuffledBatches
from contrastive_zoo.batch_samplers.selection import SelectedBatches, SelectedPartition
from contrastive_zoo.batch_samplers.spectral import BlockBatches, SpectralBatches, spectral_partition
from contrastive_zoo.registry import Card
from contrastive_zoo.registry import batch_samplers as registry

__all__ = [
    "BatchSampler",
    "BisectionBatches",
    "BlockBatches",
    "CombinationBatches",
    "CutBatches",
    "FixedBatches",
    "FullBatch",
    "OrderedBatches",
    "Partition",
    "SelectedBatches",
    "SelectedPartition",
    "ShuffledBatches",
    "SpectralBatches",
    "balanced_assignment",
    "describe_batch_sampler",
    "encode",
    "get_batch_sampler",
    "list_batch_samplers",
    "loss_graph",
    "ordered_selection",
    "register_batch_sampler",
    "spectral_partition",
    "unrank_combination",
]


def get_batch_sampler(name: str, **params: Any) -> BatchSampler:
    """Make a batch sampler by name, for ``DataLoader(dataset, batch_sampler=...)``.

    Args:
        name: One of `list_batch_samplers()`.
        **params: Parameters of the sampler (see `describe_batch_sampler(name)`) and parameters common to all samplers:
            num_samples (size of the dataset), batch_size (of all processes together), seed, num_replicas, rank.

    Raises:
        ValueError: Unknown name, or a value out of range.
        TypeError: Unknown or missing parameter.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> sampler = zoo.get_batch_sampler("fixed", num_samples=5, batch_size=2, drop_last=False)
        >>> sorted(sum(sampler, []))
        [0, 1, 2, 3, 4]
    """
    card = registry.card(name)
    if "num_samples" not in params:
        raise TypeError(f"{name!r} needs num_samples: pass num_samples=len(dataset).")
    common = {key: value for key, value in params.items() if key in ("num_samples", "seed")}
    sampler = card.build(**registry.parameters(card, params, ("num_samples", "seed")), **common)
    if not isinstance(sampler, BatchSampler):
        raise TypeError(f"{name!r} is registered with {card.build!r}, which is no contrastive_zoo.batch_samplers.BatchSampler.")
    return sampler


def list_batch_samplers() -> list[str]:
    """Names of all batch samplers, plugins included."""
    return registry.names()


def describe_batch_sampler(name: str) -> Card:
    """Summary of a batch sampler.

    Raises:
        ValueError: Unknown name.
    """
    return registry.card(name)


register_batch_sampler = registry.register
