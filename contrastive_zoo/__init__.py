"""Contrastive objectives and samplers behind one interface over feature batches.

>>> import torch
>>> import contrastive_zoo as zoo
>>> loss_fn = zoo.get_loss("ntxent", temperature=0.5)
>>> z1, z2 = torch.randn(2, 32, 64)
>>> loss = loss_fn(z1, z2)
"""

from contrastive_zoo import batch_samplers, functional, metrics, objectives, pairwise, plots, samplers
from contrastive_zoo.batch import Batch
from contrastive_zoo.batch_samplers import (
    describe_batch_sampler,
    get_batch_sampler,
    list_batch_samplers,
    register_batch_sampler,
)
from contrastive_zoo.datasets import IndexedDataset, hashed_index
from contrastive_zoo.gradient_caching import cached_backward, cached_loss
from contrastive_zoo.loss import Loss, describe_loss, get_loss, list_losses, register_loss
from contrastive_zoo.objectives.base import Objective
from contrastive_zoo.parameters import parameter_groups
from contrastive_zoo.registry import Card, Range
from contrastive_zoo.samplers import describe_sampler, get_sampler, list_samplers, register_sampler
from contrastive_zoo.schedules import CosineSchedule

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Card",
    "CosineSchedule",
    "IndexedDataset",
    "Loss",
    "Objective",
    "Range",
    "batch_samplers",
    "cached_backward",
    "cached_loss",
    "describe_batch_sampler",
    "describe_loss",
    "describe_sampler",
    "functional",
    "get_batch_sampler",
    "get_loss",
    "get_sampler",
    "hashed_index",
    "list_batch_samplers",
    "list_losses",
    "list_samplers",
    "metrics",
    "objectives",
    "pairwise",
    "parameter_groups",
    "plots",
    "register_batch_sampler",
    "register_loss",
    "register_sampler",
    "samplers",
]
