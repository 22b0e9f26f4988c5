"""Turns the arguments of a call into the `Batch` of an objective: checks, normalised rows, ids, and sums over pairs."""

from contrastive_zoo.batch.batch import Batch

__all__ = ["Batch"]
