"""Which rows of a batch are of one sample."""

import numpy as np
import torch
from torch import Tensor

from contrastive_zoo.checks import check_index_range
from contrastive_zoo.operators import operator


@operator(
    "contrastive_zoo::sample_ids",
    "(Tensor index, SymInt num_samples, bool check) -> Tensor",
)
def sample_ids(index: Tensor, num_samples: int, check: bool) -> Tensor:
    """(B,) batch position of the first row of the same sample: 0, 1, 2, ... where all samples differ."""
    if index.device.type == "cpu":
        return _host_sample_ids(index, num_samples, check)
    if check:
        check_index_range(int(index.min()), int(index.max()), num_samples)
    ordered, order = index.sort(stable=True)
    return order[torch.searchsorted(ordered, index.contiguous())]


def _host_sample_ids(index: Tensor, num_samples: int, check: bool) -> Tensor:
    """The same by NumPy, which takes less time than PyTorch to begin with small arrays."""
    positions = index.numpy()
    ordered = np.sort(positions)
    if check:
        check_index_range(int(ordered[0]), int(ordered[-1]), num_samples)
    if (ordered[1:] != ordered[:-1]).all():
        return torch.arange(index.shape[0])
    _, first, inverse = np.unique(positions, return_index=True, return_inverse=True)
    return torch.from_numpy(first[inverse])


@sample_ids.register_fake
def _(index: Tensor, num_samples: int, check: bool) -> Tensor:
    return torch.empty_like(index)
