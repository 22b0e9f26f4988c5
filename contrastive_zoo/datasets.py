"""Datasets that return the index of each sample."""

import operator
from typing import Any

from torch.utils.data import Dataset


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
