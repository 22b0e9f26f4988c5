"""Positions of samples: a dataset that returns them, and positions for the ids of a stream."""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from contrastive_zoo.checks import check_count, check_integers


class IndexedDataset(Dataset[Any]):
    """Adds the position of a sample to what a map-style dataset returns.

    A tuple or list becomes a tuple with the index last, a dictionary gets the key "index", anything else becomes a pair. Other
    attributes, such as ``classes``, are those of the dataset.

    Args:
        dataset: Any object with ``__getitem__`` and ``__len__``.

    Raises:
        TypeError: ``dataset`` has no length or no items.

    Examples:
        >>> import contrastive_zoo as zoo
        >>> zoo.IndexedDataset([("cat", 0), ("dog", 1)])[1]
        ('dog', 1, 1)
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset must be map-style, with __getitem__ and __len__, got {type(dataset).__name__}. "
                "A stream has no positions: number its samples where it is made."
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The sample at a position with its index; negative positions count from the end.

        Raises:
            IndexError: The position is outside the dataset.
        """
        size = len(self)
        position = operator.index(index)
        if not -size <= position < size:
            raise IndexError(f"index {position} is out of range for a dataset of {size} samples.")
        position %= size
        item = self.dataset[position]
        if isinstance(item, dict):
            if "index" in item:
                raise ValueError('the dataset already returns a key "index": use that, or rename it.')
            return {**item, "index": position}
        if isinstance(item, (tuple, list)):
            return (*item, position)
        return item, position

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # as while a copy is made
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)


def hashed_index(ids: Tensor, num_samples: int) -> Tensor:
    r"""Positions for samples that have 64-bit ids and no numbers, such as those of a stream: ``hash(id) % num_samples``.

    The hash is SplitMix64, the same on all devices and in all versions. Samples that share a position share one entry of every
    table, and are no negatives of each other in a batch. Of n different ids a part of $1 - (1 - 1/N)^{n-1} \approx
    1 - e^{-n/N}$ share their position, with N = ``num_samples``: 1 % for N = 100 n, 10 % for N = 10 n. In a batch of B
    samples, B (B - 1) / 2N pairs are expected to.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Args:
        ids: (B,) integers.
        num_samples: Number of positions, as for `get_loss`.

    Returns:
        (B,) int64, from 0 to ``num_samples - 1``, on the device of ``ids``; give them as ``index``.

    Raises:
        TypeError: ``ids`` are not integers, or ``num_samples`` is not whole.
        ValueError: ``ids`` have another shape, or ``num_samples`` is below 1.

    Examples:
        >>> import torch, contrastive_zoo as zoo
        >>> zoo.hashed_index(torch.tensor([7_000_000_000_000, 12, 7_000_000_000_000]), num_samples=1_000_000)
        tensor([602472, 340161, 602472])
    """
    check_integers("ids", ids, ids.numel() if isinstance(ids, Tensor) else 1)
    num_samples = check_count("num_samples", num_samples)
    x = ids.to(torch.int64) + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(x ^ _shifted(x, 31), 1) % num_samples  # 63 bits, which are not negative


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    return word - 2**64 if word >= 2**63 else word


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The bits of int64 shifted to the right, with zeros on the left."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
