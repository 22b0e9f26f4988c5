"""Which rows of a batch belong to the same sample."""

import zlib

import numpy as np
import torch
from torch import Tensor

from contrastive_zoo.checks import check_index_range
from contrastive_zoo.devices import as_array, cached_on_host, readable
from contrastive_zoo.operators import operator

# Id of an extra negative whose sample is not in the batch: no row has this id, so the key is a negative of every row. It is not
# -1, the sample of a place in a table that holds nothing and counts for no row (`NOBODY` in `contrastive_zoo.state.saved`).
OUTSIDE = -2


@cached_on_host
def regular_ids(rows: int, group: int) -> Tensor:
    """(rows,) ids 0, 0, ..., 1, 1, ..., each ``group`` times, on the host; cached, so do not write to them."""
    return torch.arange(rows, device="cpu") // group


def all_differ(index: Tensor, num_samples: int) -> bool:
    """Whether all positions in an index on the host differ.

    Raises:
        IndexError: A position is outside the dataset.
    """
    ordered = np.sort(as_array(index))  # less overhead than PyTorch for small arrays
    check_index_range(int(ordered[0]), int(ordered[-1]), num_samples)
    return bool((ordered[1:] != ordered[:-1]).all())


def checksum(index: Tensor | None) -> int:
    """A checksum of the samples of a batch, independent of their order; -1 for an index that is not on the host."""
    return zlib.crc32(np.sort(as_array(index).astype(np.int64)).tobytes()) if index is not None and index.is_cpu else -1


@operator(
    "contrastive_zoo::sample_ids",
    "(Tensor index, SymInt num_samples, bool check) -> Tensor",
)
def sample_ids(index: Tensor, num_samples: int, check: bool) -> Tensor:
    """(B,) batch position of the first row of the same sample: 0, 1, 2, ... where all samples differ."""
    if readable(index):
        if all_differ(index, num_samples):
            return torch.arange(index.shape[0], device="cpu")
        _, first, inverse = np.unique(as_array(index), return_index=True, return_inverse=True)
        return torch.from_numpy(first[inverse])
    if check:
        check_index_range(int(index.min()), int(index.max()), num_samples)
    ordered, order = index.sort(stable=True)
    return order[torch.searchsorted(ordered, index.contiguous())]


@sample_ids.register_fake
def _(index: Tensor, num_samples: int, check: bool) -> Tensor:
    return torch.empty_like(index)
