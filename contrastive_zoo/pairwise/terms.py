"""What is summed over pairs of rows with similarities $s_{ij}$, and what comes of it.

A term has at most two tensors that get gradients, a scale and an offset, and numbers; `packed` and `unpacked` take it through
an operator.

Shapes: G sets of N rows, M keys, K scales.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.checks import as_tensor, check_number, shape
from contrastive_zoo.pairwise.kernels import KERNEL_NAMES

Scales = float | Tensor | tuple[float | Tensor, ...]


class Packed(NamedTuple):
    """A term as an operator takes it.

    Attributes:
        scale: The tensor that multiplies similarities, if there is one.
        offset: The other tensor, if there is one.
        numbers: Everything else.
        sums: Number of sums per row, K.
        means: Whether there are means beside the sums.
    """

    scale: Tensor | None
    offset: Tensor | None
    numbers: list[float]
    sums: int = 1
    means: bool = False


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

    def packed(self) -> Packed:
        """This term for an operator."""
        return Packed(self.scale, None, [self.mean], self.scale.shape[0], self.mean)

    @staticmethod
    def unpacked(packed: Packed) -> "LogSumExp":
        """The term again."""
        assert packed.scale is not None
        return LogSumExp(packed.scale, bool(packed.numbers[0]))


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

    def packed(self) -> Packed:
        """This term for an operator."""
        return Packed(self.scale, self.bias, [self.uniform])

    @staticmethod
    def unpacked(packed: Packed) -> "Softplus":
        """The term again."""
        assert packed.scale is not None
        assert packed.offset is not None
        return Softplus(packed.scale, packed.offset, bool(packed.numbers[0]))


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

    def packed(self) -> Packed:
        """This term for an operator."""
        return Packed(None, self.squared_norms, [KERNEL_NAMES.index(self.kernel), self.parameter, self.rounding])

    @staticmethod
    def unpacked(packed: Packed) -> "KernelSum":
        """The term again."""
        kernel, parameter, rounding = packed.numbers
        return KernelSum(KERNEL_NAMES[int(kernel)], parameter, packed.offset, rounding)


@dataclass(frozen=True, eq=False)
class Squares:
    r"""$\sum_j s_{ij}^2$."""

    def packed(self) -> Packed:
        """This term for an operator."""
        return Packed(None, None, [])

    @staticmethod
    def unpacked(packed: Packed) -> "Squares":
        """The term again."""
        return Squares()


def _as_scalar(argument: str, value: float | Tensor, rows: int | None = None) -> Tensor:
    """A number or a 0-dim tensor as a tensor; numbers in float64. ``rows``, for errors: one per row would do as well."""
    tensor = value if isinstance(value, Tensor) else as_tensor(check_number(argument, value))
    if tensor.dim():
        wanted = "a number or a 0-dim tensor" if rows is None else f"a number or hold one per row, ({rows},)"
        raise ValueError(f"{argument} must be {wanted}, got shape {shape(tensor)}.")
    return tensor


Term = LogSumExp | Softplus | KernelSum | Squares
TERMS: dict[str, type[Term]] = {term.__name__: term for term in (LogSumExp, Softplus, KernelSum, Squares)}


# Whether a gradient is needed of rows, keys, scale and offset.
Needs = tuple[bool, bool, bool, bool]


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
