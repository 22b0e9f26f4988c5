"""Batches larger than memory: gradients of a loss of all features, computed chunk by chunk."""

from contrastive_zoo.gradient_caching.caching import cached_backward, cached_loss

__all__ = ["cached_backward", "cached_loss"]
