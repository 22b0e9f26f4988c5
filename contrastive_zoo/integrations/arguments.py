"""Checks of the arguments that adapters take."""

from contrastive_zoo.batch_samplers import BatchSampler
from contrastive_zoo.loss import Loss


def check_loss(loss_fn: object) -> Loss:
    """Return ``loss_fn``; raise unless it is a loss of the zoo.

    Raises:
        TypeError: ``loss_fn`` is no loss of the zoo.
    """
    if not isinstance(loss_fn, Loss):
        raise TypeError(f"loss_fn must be a loss of the zoo, got {type(loss_fn).__name__}. Pass zoo.get_loss(name, ...).")
    return loss_fn


def check_batch_sampler(sampler: object) -> BatchSampler:
    """Return ``sampler``; raise unless it is a batch sampler of the zoo.

    Raises:
        TypeError: ``sampler`` is no batch sampler of the zoo.
    """
    if not isinstance(sampler, BatchSampler):
        raise TypeError(
            f"sampler must be a batch sampler of the zoo, got {type(sampler).__name__}. "
            "Pass zoo.get_batch_sampler(name, ...), the object that the loader gets as batch_sampler."
        )
    return sampler
