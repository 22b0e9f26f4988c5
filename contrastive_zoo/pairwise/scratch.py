"""Memory of the host that goes from step to step instead of back to the system.

Memory that is new to a process costs a page fault for each 4 KiB, which for a batch of a thousand rows is more time than its
matrix products. So blocks whose tensors are gone wait here for the next step.
"""

import weakref
from collections import defaultdict, deque
from typing import Any

import torch
from torch import Tensor

# Smaller blocks stay with the allocator, which does not hand them back either.
SMALLEST = 2**19
# Larger ones are in use for much longer than it takes to get them.
LARGEST = 2**24

# NumPy arrays of bytes, by size: at most two of each power of two, 63 MiB together, and none of a power nobody asks for.
_waiting: defaultdict[int, deque[Any]] = defaultdict(lambda: deque(maxlen=2))


def empty(like: Tensor, *shape: int) -> Tensor:
    """A tensor that is not filled in, in the dtype and on the device of another; its memory may have been used before."""
    size = like.element_size()
    for extent in shape:
        size *= extent
    if not like.is_cpu or not SMALLEST <= size <= LARGEST:
        return like.new_empty(shape)
    capacity = 1 << (size - 1).bit_length()
    try:
        block = _waiting[capacity].pop()
    except IndexError:
        with torch.inference_mode(False):
            block = torch.empty(capacity, dtype=torch.uint8).numpy()
    # The storage of a tensor holds on to the array that it came from: once nobody needs that, the block is free again.
    lease = block[:size]
    weakref.finalize(lease, _waiting[capacity].append, block).atexit = False
    tensor = torch.from_numpy(lease).view(like.dtype).view(shape)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if fill and torch.are_deterministic_algorithms_enabled():
        tensor.fill_(torch.nan)
    return tensor
