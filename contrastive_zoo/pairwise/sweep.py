"""What is summed over pairs of rows: a `Sweep` says over which pairs, a `Term` says what.

Shapes: G sets of N rows `x`, M rows `keys`, D features, K scales.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_device, check_features, check_integers, shape


@dataclass(frozen=True, eq=False)
class Sweep:
    """Which pairs are summed over, and what is known about them.

    Attributes:
        x: (N, D) rows, or (G, N, D) sets of rows, in float32 or float64.
        keys: (M, D) keys of the one set of rows. None: each set is its own keys, and every pair is visited once.
        ids: (N,) integers. Without keys the default is one id per row, with keys no pair is left out.
        key_ids: (M,) integers, given together with ``ids`` where there are keys.
        counts: Whether pairs of "different" ids count, or those of different rows with "equal" ids.
        both: Whether there are sums for the keys as well.
        norm_bound: A known bound on the length of all rows and keys.
        part: (p, P): only part p of P, from 0, is summed over. The parts are strips of rows, whatever the backend.
    """

    x: Tensor
    keys: Tensor | None = None
    ids: Tensor | None = None
    key_ids: Tensor | None = None
    counts: Literal["different", "equal"] = "different"
    both: bool = False
    norm_bound: float = torch.inf
    part: tuple[int, int] = (0, 1)

    @staticmethod
    def of(
        x: Tensor,
        keys: Tensor | None = None,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        *,
        counts: Literal["different", "equal"] = "different",
        both: bool = False,
        norm_bound: float = torch.inf,
        part: tuple[int, int] = (0, 1),
        sets: bool = False,
    ) -> "Sweep":
        """A sweep over checked rows, half precision converted to float32.

        Args:
            x: (N, D), or (G, N, D) if ``sets``.
            keys: As in the class, as are the others.
            ids: See there.
            key_ids: See there.
            counts: See there.
            both: See there.
            norm_bound: See there.
            part: See there.
            sets: Whether several sets of rows are allowed.

        Raises:
            ValueError: Shapes, devices or the part do not fit.
            TypeError: A dtype is wrong.
        """
        check_features("x", x, (2, 3) if sets and keys is None else (2,))
        if ids is not None:
            check_integers("ids", ids, x.shape[-2])
        if keys is None and key_ids is not None:
            raise ValueError("key_ids was given without keys: rows that are their own keys have ids only.")
        if keys is not None:
            _check_keys(x, keys, ids, key_ids)
        if not 0 <= part[0] < part[1]:
            raise ValueError(f"part must be (number, parts) with 0 <= number < parts, got {part!r}.")
        rows = in_working_precision(x)
        keys = None if keys is None else in_working_precision(keys)
        return Sweep(rows, keys, ids, key_ids, counts, both, float(norm_bound), part)

    @property
    def sets(self) -> tuple[Tensor, ...]:
        """The sets of rows, (N, D) each."""
        return self.x.unbind() if self.x.dim() == 3 else (self.x,)


def in_working_precision(x: Tensor) -> Tensor:
    """The tensor itself, or in float32 if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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


@dataclass(frozen=True, eq=False)
class LogSumExp:
    r"""$\log \sum_j \exp(c\, s_{ij})$.

    Attributes:
        scale: (K, 1) K scales c for all rows, or (1, N) one scale per row.
        mean: Whether the mean of $s_{ij}$ under the softmax of the logits is wanted as well.
    """

    scale: Tensor
    mean: bool = False


@dataclass(frozen=True, eq=False)
class Softplus:
    r"""$\sum_j \log(1 + \exp(c\, s_{ij} + b_i))$.

    Attributes:
        scale: 0-dim, c.
        bias: (N,), b.
        uniform: A promise that the upstream gradient is the same for all rows.
    """

    scale: Tensor
    bias: Tensor
    uniform: bool = False


@dataclass(frozen=True, eq=False)
class KernelSum:
    r"""$\sum_j k_t(d_{ij}^2)$ with $d_{ij}^2 = |x_i|^2 + |x_j|^2 - 2 s_{ij}$.

    Attributes:
        kernel: Name of the kernel.
        parameter: t.
        squared_norms: (N,) or (G, N) squared lengths of the rows; None for rows of length 1.
        rounding: Relative rounding of the entries of half-precision rows; 0 for others.
    """

    kernel: str
    parameter: float
    squared_norms: Tensor | None
    rounding: float = 0.0


Term = LogSumExp | Softplus | KernelSum


class Sums(NamedTuple):
    """What a sweep gives.

    Attributes:
        rows: (K, N) or (K, G, N) sums of the rows; K is 1 unless the term has several scales.
        columns: (K, M) sums of the keys, if both are wanted, else empty.
        means: As the rows, means of the term that has them, else empty; they carry no gradient.
    """

    rows: Tensor
    columns: Tensor
    means: Tensor


class Gradients(NamedTuple):
    """Gradients of what a sweep was given; empty where none is needed.

    Attributes:
        x: As the rows.
        keys: (M, D).
        scale: As the scale of the term.
        offset: As the bias or the squared norms of the term.
    """

    x: Tensor
    keys: Tensor
    scale: Tensor
    offset: Tensor
