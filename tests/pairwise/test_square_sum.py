"""The rounding of the sums of squares, from which pairs that do not count are taken off again."""

import oracle
import pytest
import torch
from cases import rows
from tolerances import assert_close

from contrastive_zoo import pairwise


@pytest.mark.parametrize("shape", [(64, 8), (8, 64)], ids=str)
def test_little_is_lost_where_others_are_orthogonal_and_positives_are_not(shape: tuple[int, int]) -> None:
    """In float32, to the resolution of the squares of the positives, which are taken off; exactly where they never went in."""
    exact = torch.eye(max(shape), dtype=torch.float64)[: shape[0], : shape[1]] + 1e-3 * rows(*shape).detach()
    x = torch.nn.functional.normalize(exact, dim=1)
    reference = oracle.square_sum(x, x, range(shape[0]))
    value = pairwise.square_sum(x.float(), x.float())
    positives = 0.0 if shape[0] <= shape[1] else 1.0
    assert_close(value, reference, "value", magnitude=positives)
