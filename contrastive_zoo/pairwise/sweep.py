"""The pairs of rows that are summed over.

Shapes: G sets of N rows `x`, M rows `keys`, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_count, check_device, check_features, check_integers, shape

# Strips of rows that processes share begin at multiples of this.
GRAIN = 32
HALF = (torch.float16, torch.bfloat16)


class Ids(NamedTuple):
    """Ids of rows, with the number of repetitions of each id.

    Attributes:
        values: (N,) integers.
        group: Number of repetitions of each id if the ids are known to be 0, 0, ..., 1, 1, ...; 0 if unknown.
    """

    values: Tensor
    group: int = 0


class Bound(NamedTuple):
    """What is known about the entries of rows.

    Attributes:
        norm: An upper bound on the length of all rows and keys.
        operand: A half precision that a backend may multiply in, because it holds all entries; None if there is none.
        rounded: The rows in this precision, if such a copy is at hand.
        rounded_keys: Likewise for the keys.
    """

    norm: float = torch.inf
    operand: torch.dtype | None = None
    rounded: Tensor | None = None
    rounded_keys: Tensor | None = None

    @property
    def rounding(self) -> float:
        """Relative rounding error of rows in half precision; 0 for other rows."""
        return 0.0 if self.operand is None else torch.finfo(self.operand).eps


UNKNOWN = Bound()
# The part (number, parts) of a sweep that has all pairs.
WHOLE = (0, 1)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The pairs that are summed over, and known properties of the rows.

    Attributes:
        x: (N, D) rows, or (G, N, D) sets of rows, in float32 or float64.
        keys: (M, D) keys, for a single set of rows. None: each set is its own keys, and every pair is visited once.
        ids: (N,) integers. The default without keys is one id per row, the default with keys excludes no pair.
        key_ids: (M,) integers; required if both ``keys`` and ``ids`` are given.
        counts: Whether to include pairs with "different" ids, or pairs of different rows with "equal" ids.
        both: Whether to compute sums for the keys too.
        part: (p, P): only part p of P, counted from 0, is summed over. Parts are strips of rows, the same for all backends.
        group: Number of repetitions of each id if the ids of rows and keys are known to be 0, 0, ..., 1, 1, ...; 0 if unknown.
        bound: What is known about the entries of rows and keys.
        ordered: Whether ids ascend, so that rows with equal ids are next to each other.
    """

    x: Tensor
    keys: Tensor | None = None
    ids: Tensor | None = None
    key_ids: Tensor | None = None
    counts: Literal["different", "equal"] = "different"
    both: bool = False
    part: tuple[int, int] = WHOLE
    group: int = 0
    bound: Bound = UNKNOWN
    ordered: bool = False

    @staticmethod
    def of(
        x: Tensor,
        keys: Tensor | None = None,
        ids: Tensor | Ids | None = None,
        key_ids: Tensor | Ids | None = None,
        *,
        counts: Literal["different", "equal"] = "different",
        both: bool = False,
        norm_bound: float | Bound = torch.inf,
        part: tuple[int, int] = WHOLE,
    ) -> "Sweep":
        """A sweep over checked rows, half precision converted to float32; arguments as in the class.

        A `Bound` says what is known about the entries too.

        Raises:
            ValueError: Shapes, devices or the part do not fit.
            TypeError: A dtype is wrong.
        """
        check_features("x", x, (2, 3) if keys is None else (2,))
        ids, key_ids, group = _ids_and_group(keys, ids, key_ids)
        if ids is not None:
            check_integers("ids", ids, x.shape[-2])
        if keys is not None:
            _check_keys(x, keys, ids, key_ids)
        elif key_ids is not None:
            raise ValueError("key_ids was given without keys: rows that are their own keys have ids only.")
        part = part if part is WHOLE else _checked_part(part)
        known = norm_bound if isinstance(norm_bound, Bound) else Bound(float(norm_bound))
        if x.dtype in HALF:
            known = Bound(known.norm, x.dtype, x.detach(), None if keys is None else keys.detach())
        rows = in_working_precision(x)
        keys = None if keys is None else in_working_precision(keys)
        return Sweep(rows, keys, ids, key_ids, counts, both, part, group, known)

    def with_ids(self, ids: Tensor | Ids | None, key_ids: Tensor | Ids | None) -> "Sweep":
        """The sweep with other ids, which are not checked."""
        ids, key_ids, group = _ids_and_group(self.keys, ids, key_ids)
        return replace(self, ids=ids, key_ids=key_ids, group=group)

    @property
    def norm_bound(self) -> float:
        """A known upper bound on the length of all rows and keys."""
        return self.bound.norm

    @property
    def operand(self) -> torch.dtype | None:
        """A half precision that a backend may multiply in, because it holds all entries; None if there is none."""
        return self.bound.operand

    @property
    def sets(self) -> tuple[Tensor, ...]:
        """The sets of rows, (N, D) each."""
        return self.x.unbind() if self.x.dim() == 3 else (self.x,)


def _ids_and_group(
    keys: Tensor | None, ids: Tensor | Ids | None, key_ids: Tensor | Ids | None
) -> tuple[Tensor | None, Tensor | None, int]:
    """The tensors of ids, and how often each id is repeated if that is known and the same for rows and keys."""
    ids, group = ids if isinstance(ids, Ids) else (ids, 0)
    key_ids, of_keys = key_ids if isinstance(key_ids, Ids) else (key_ids, 0 if keys is not None else group)
    return ids, key_ids, group if of_keys == group else 0


def unrounded(sweep: Sweep) -> Sweep:
    """The sweep without copies of rows in half precision, for backends that do not use such copies."""
    if sweep.bound.rounded is None and sweep.bound.rounded_keys is None:
        return sweep
    return replace(sweep, bound=Bound(sweep.norm_bound, sweep.operand))


def in_working_precision(x: Tensor) -> Tensor:
    """The tensor, converted to float32 if it is in half precision."""
    return x.float() if x.dtype in HALF else x


def strips(rows: int, part: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Start and stop of the strips of a part.

    The rows are cut into 2P strips, where P is the number of parts; part p takes the p-th strip and the p-th from the end. In a
    symmetric sweep later strips have fewer pairs, and all such pairs of strips take the same work.
    """
    number, parts = part
    if parts == 1:
        yield 0, rows
        return
    height = -(-rows // (2 * parts * GRAIN)) * GRAIN
    for strip in (number, 2 * parts - 1 - number):
        start, stop = min(strip * height, rows), min((strip + 1) * height, rows)
        if start < stop:
            yield start, stop


def _checked_part(part: tuple[int, int]) -> tuple[int, int]:
    wanted = f"part must be (number, parts), two whole numbers with 0 <= number < parts, got {part!r}."
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise TypeError(wanted)
    number, parts = part
    if type(number) is not int or type(parts) is not int:  # NumPy's numbers, for example
        number, parts = (check_count(f"number and parts of part = {part!r}", entry, low=0) for entry in part)
    if not 0 <= number < parts:
        raise ValueError(wanted)
    return number, parts


def _check_keys(x: Tensor, keys: Tensor, ids: Tensor | None, key_ids: Tensor | None) -> None:
    check_features("keys", keys, (2,))
    check_device("x", x, "keys", keys)
    if keys.shape[1] != x.shape[1] or keys.dtype != x.dtype:
        raise ValueError(
            f"x and keys must have the same width and dtype, got {shape(x)} {x.dtype} and {shape(keys)} {keys.dtype}."
        )
    if (ids is None) != (key_ids is None):
        raise ValueError("ids and key_ids go together: give both, or neither to leave no pair out.")
    if key_ids is not None:
        check_integers("key_ids", key_ids, len(keys))
