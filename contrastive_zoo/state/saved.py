"""What tables of samples hold where they hold nothing, and checks of tables that are loaded."""

import torch
from torch import Tensor

from contrastive_zoo.checks import INTEGERS

# The sample, or the row of the dataset, in a place of a table that holds nothing; it counts for no row.
NOBODY = -1


def check_table(name: str, table: object, like: Tensor) -> Tensor:
    """Return a table; raise unless it is a tensor of the kind of ``like``, and finite where floating-point.

    Raises:
        TypeError: ``table`` is no tensor, or holds another kind of values.
        ValueError: An entry is NaN or infinite.
    """
    wanted = _kind(like.dtype)
    if not isinstance(table, Tensor) or _kind(table.dtype) != wanted:
        given = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"{name} must be a tensor of {wanted}, got {given}. Pass the entry as it was saved.")
    if not bool(torch.isfinite(table).all()):
        raise ValueError(f"{name} must be finite, and holds NaN or infinite values. Use a state from before training diverged.")
    return table


def check_entries(name: str, table: Tensor, low: int, high: float) -> None:
    """Raise unless all entries of an integer table are from ``low`` to ``high``, inclusive."""
    if table.numel() and not (low <= int(table.min()) and int(table.max()) <= high):
        found = f"{int(table.min())} to {int(table.max())}"
        raise ValueError(
            f"{name} must be from {low} to {high} in all entries, got {found}. The state is broken, or of another dataset."
        )


def check_chains(chain: Tensor, num_samples: int, visited: Tensor | None) -> None:
    """Raise unless chains (n, 2) are in rows of the dataset; ``visited`` says which samples have an embedding."""
    check_entries("chain", chain, NOBODY, 2 * num_samples - 1)
    states = chain.cpu()[chain.cpu() >= 0] // 2
    if visited is not None and not bool(visited.cpu()[states].all()):
        raise ValueError("chain holds states of samples that visited marks as not visited, which have no embedding.")


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating-point numbers"
    return "True and False" if dtype == torch.bool else "integers" if dtype in INTEGERS else str(dtype)
