"""What is summed over pairs of rows: a `Sweep` says over which pairs, a `Term` says what.

Shapes: G sets of N rows `x`, M rows `keys`, D features, K scales.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import check_device, check_features, check_integers, check_number, shape

Scales = float | Tensor | tuple[float | Tensor, ...]


class Ids(NamedTuple):
    """Ids of rows, and what is known about them.

    Attributes:
        values: (N,) integers.
        group: How often each id comes if they are known to be 0, 0, ..., 1, 1, ...; 0 if nobody knows.
    """

    values: Tensor
    group: int = 0


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
        group: How often each id comes if those of rows and keys are known to be 0, 0, ..., 1, 1, ...; 0 if nobody knows.
    """

    x: Tensor
    keys: Tensor | None = None
    ids: Tensor | None = None
    key_ids: Tensor | None = None
    counts: Literal["different", "equal"] = "different"
    both: bool = False
    norm_bound: float = torch.inf
    part: tuple[int, int] = (0, 1)
    group: int = 0

    @staticmethod
    def of(
        x: Tensor,
        keys: Tensor | None = None,
        ids: Tensor | Ids | None = None,
        key_ids: Tensor | Ids | None = None,
        *,
        counts: Literal["different", "equal"] = "different",
        both: bool = False,
        norm_bound: float = torch.inf,
        part: tuple[int, int] = (0, 1),
    ) -> "Sweep":
        """A sweep over checked rows, half precision converted to float32; arguments as in the class.

        Raises:
            ValueError: Shapes, devices or the part do not fit.
            TypeError: A dtype is wrong.
        """
        check_features("x", x, (2, 3) if keys is None else (2,))
        ids, group = ids if isinstance(ids, Ids) else (ids, 0)
        key_ids, of_keys = key_ids if isinstance(key_ids, Ids) else (key_ids, 0 if keys is not None else group)
        if ids is not None:
            check_integers("ids", ids, x.shape[-2])
        if keys is not None:
            _check_keys(x, keys, ids, key_ids)
        elif key_ids is not None:
            raise ValueError("key_ids was given without keys: rows that are their own keys have ids only.")
        if not 0 <= part[0] < part[1]:
            raise ValueError(f"part must be (number, parts) with 0 <= number < parts, got {part!r}.")
        rows = in_working_precision(x)
        keys = None if keys is None else in_working_precision(keys)
        return Sweep(rows, keys, ids, key_ids, counts, both, float(norm_bound), part, group if of_keys == group else 0)

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

    @staticmethod
    def of(scale: Scales, x: Tensor) -> "LogSumExp":
        """From a number, a tensor of one scale or of one per row of ``x``, or a tuple of scales for all rows.

        Raises:
            TypeError: A scale is neither a number nor a tensor.
            ValueError: A shape does not fit.
        """
        if isinstance(scale, tuple):
            return LogSumExp(torch.stack([_as_scalar("a scale of a tuple", each) for each in scale])[:, None])
        if isinstance(scale, Tensor) and scale.dim() == 1 and len(scale) == x.shape[-2]:
            return LogSumExp(scale[None])
        return LogSumExp(_as_scalar("scale", scale, x.shape[-2]).reshape(1, 1))


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

    @staticmethod
    def of(scale: float | Tensor, bias: float | Tensor, x: Tensor, uniform: bool = False) -> "Softplus":
        """From a scale, and a bias for all rows of ``x`` or one per row.

        Raises:
            TypeError: An argument is neither a number nor a tensor.
            ValueError: A shape does not fit.
        """
        if not isinstance(bias, Tensor) or bias.shape != (len(x),):
            bias = _as_scalar("bias", bias, len(x))
        return Softplus(_as_scalar("scale", scale), bias.to(x).expand(len(x)), uniform)


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


def _as_scalar(argument: str, value: float | Tensor, rows: int | None = None) -> Tensor:
    """A number or a 0-dim tensor as a tensor; numbers in float64. ``rows``, for errors: one per row would do as well."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(check_number(argument, value), dtype=torch.float64)
    if tensor.dim():
        wanted = "a number or a 0-dim tensor" if rows is None else f"a number or hold one per row, ({rows},)"
        raise ValueError(f"{argument} must be {wanted}, got shape {shape(tensor)}.")
    return tensor


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
