"""From the arguments of a call to what an objective sees: checks, normalised rows, ids, and sums over pairs."""

from contrastive_zoo.batch.batch import Batch

__all__ = ["Batch"]
