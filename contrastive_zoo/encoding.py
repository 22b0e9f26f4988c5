"""Features that an objective asks a user's encoder for, while the loss is being computed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_features, shape
from contrastive_zoo.features import stack_views


class Outside(NamedTuple):
    """What features become rows by, and the autocast state that a user's encoder runs in: see `contrastive_zoo.batch.Encoding`.

    Attributes:
        device_type: Of the features.
        autocast: Precision of the caller's autocast; None if it is off.
        operand: Precision that rows are rounded to.
        normalize: As for `stack_views`.
        validate: As for `stack_views`.
        second_order: As for `stack_views`.
    """

    device_type: str
    autocast: torch.dtype | None
    operand: torch.dtype
    normalize: str
    validate: bool
    second_order: bool

    def __call__(self, encode: Callable[[Tensor, Tensor], Tensor], index: Tensor, view: Tensor) -> Tensor:
        """Rows (n, D) of what ``encode(index, view)`` returns."""
        with torch.autocast(self.device_type, dtype=self.autocast, enabled=self.autocast is not None):
            z = encode(index, view)
        check_features("what encode returns", z, (2,))
        if len(z) != len(index):
            raise ValueError(f"encode must return one row for each of {len(index)} positions, got shape {shape(z)}.")
        name, second_order = "what encode returns", self.second_order
        rows, _ = stack_views(
            z, None, self.normalize, self.operand, name=name, validate=self.validate, second_order=second_order
        )
        return rows
