"""Gradient caching for batches larger than memory: gradients of the loss of a whole batch, computed chunk by chunk."""

from contrastive_zoo.gradient_caching.caching import cached_backward, cached_loss

__all__ = ["cached_backward", "cached_loss"]
