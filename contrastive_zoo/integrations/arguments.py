"""Checks of the arguments that adapters take."""

from contrastive_zoo.batch_samplers import BatchSampler


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
