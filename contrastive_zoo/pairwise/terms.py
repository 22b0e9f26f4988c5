"""Terms, which are summed over pairs of rows with similarities $s_{ij}$, and the results of a sweep.

A term has at most two tensors that get gradients, a scale and an offset, and numbers; `packed` and `unpacked` convert a term to
the arguments of an operator and back.

Shapes: G sets of N rows, M keys, K scales.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from contrastive_zoo.checks import as_tensor, check_number, shape
from contrastive_zoo.devices import cached_on_host, readable
from contrastive_zoo.pairwise.kernels import KERNEL_NAMES

# Largest |logit| for which exponentials, sums of 2^18 of them, and their inverses times 1e-10 are normal numbers.
LOGIT_LIMIT = {torch.float32: 60.0, torch.float64: 600.0}
Scales = float | Tensor | tuple[float | Tensor, ...]


class Packed(NamedTuple):
    """A term as arguments of an operator.

    Attributes:
        scale: The tensor that multiplies similarities, if there is one.
        offset: The second tensor, if there is one.
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
        mean: Whether to compute the mean of $s_{ij}$ under the softmax of the logits too.
        constants: The scales, if they were given as floats; else empty.
    """

    scale: Tensor
    mean: bool = False
    constants: tuple[float, ...] = ()

    @property
    def largest(self) -> float:
        """The largest |scale| that the host knows without a synchronisation; infinite if it does not."""
        if self.constants:
            return max(map(abs, self.constants))
        if not readable(self.scale):
            return math.inf
        return abs(self.scale.item()) if self.scale.numel() == 1 else float(self.scale.detach().abs().max())

    @staticmethod
    def of(scale: Scales, rows: int) -> "LogSumExp":
        """From a number, a tensor with one scale or one scale for each of N rows, or a tuple of scales for all rows.

        Raises:
            TypeError: A scale is neither a number nor a tensor.
            ValueError: A shape does not fit.
        """
        given = (scale,) if type(scale) is float else scale if isinstance(scale, tuple) else ()
        if given and not torch.compiler.is_compiling() and all(map(_is_constant, given)):
            return LogSumExp(on_host(given), constants=given)  # type: ignore[arg-type]
        if isinstance(scale, tuple):
            if not scale:
                raise ValueError("scale must hold at least one number, got an empty tuple.")
            return LogSumExp(torch.stack([_as_scalar("a scale of a tuple", each) for each in scale])[:, None])
        if isinstance(scale, Tensor) and scale.dim() == 1 and len(scale) == rows:
            return LogSumExp(scale[None])
        return LogSumExp(_as_scalar("scale", scale, rows).reshape(1, 1))

    @staticmethod
    def of_both(scale: Scales, rows: int) -> "LogSumExp":
        """For rows and keys alike.

        Raises:
            ValueError: There is not one scale for all.
        """
        term = LogSumExp.of(scale, rows)
        if isinstance(scale, tuple) or term.scale.shape != (1, 1):
            given = f"a tuple of {len(scale)}" if isinstance(scale, tuple) else f"shape {shape(torch.as_tensor(scale))}"
            raise ValueError(f"scale must be one number for both directions, got {given}.")
        return term

    @staticmethod
    def with_mean(scale: Tensor, rows: int, like: Tensor) -> "LogSumExp":
        """With means, from one scale for each of N rows, which become a tensor like another.

        Raises:
            ValueError: There is not one scale per row.
        """
        if not isinstance(scale, Tensor) or scale.shape != (rows,):
            given = shape(scale) if isinstance(scale, Tensor) else type(scale).__name__
            raise ValueError(f"scale must be a tensor with one scale per row, ({rows},), got {given}.")
        return LogSumExp(scale.to(like).contiguous()[None], mean=True)

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
    def of(scale: float | Tensor, bias: float | Tensor, rows: int, like: Tensor, uniform: bool = False) -> "Softplus":
        """From a scale, and one bias for all of N rows or one bias per row, which becomes a tensor like another.

        Raises:
            TypeError: An argument is neither a number nor a tensor.
            ValueError: A shape does not fit.
        """
        if not isinstance(bias, Tensor) or bias.shape != (rows,):
            bias = _as_scalar("bias", bias, rows)
        return Softplus(_as_scalar("scale", scale), bias.to(like).expand(rows), uniform)

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
        rounding: Relative rounding error of half-precision rows; 0 for other rows.
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


def _is_constant(scale: float | Tensor) -> bool:
    return type(scale) is float and math.isfinite(scale)


@cached_on_host
def on_host(numbers: tuple[float, ...]) -> Tensor:
    """K numbers as a tensor (K, 1) in float64 on the host."""
    return torch.tensor(numbers, dtype=torch.float64, device="cpu").unsqueeze(1)


def _as_scalar(argument: str, value: float | Tensor, rows: int | None = None) -> Tensor:
    """A number or a 0-dim tensor as a tensor; numbers in float64. With ``rows``, errors say that one per row is allowed too."""
    tensor = value if isinstance(value, Tensor) else as_tensor(check_number(argument, value))
    if tensor.dim():
        wanted = "a number or a 0-dim tensor" if rows is None else f"a number or hold one per row, ({rows},)"
        raise ValueError(f"{argument} must be {wanted}, got shape {shape(tensor)}.")
    return tensor


Term = LogSumExp | Softplus | KernelSum | Squares
TERMS: dict[str, type[Term]] = {term.__name__: term for term in get_args(Term)}


# Whether rows, keys, scale and offset need a gradient.
Needs = tuple[bool, bool, bool, bool]


class Sums(NamedTuple):
    """Result of a sweep. Backends return the shapes below; what `compute` returns has no axis of scales if K is 1.

    Attributes:
        rows: (K, N) or (K, G, N) sums of the rows; K is 1 unless the term has several scales.
        columns: (K, M) sums of the keys, if ``both``, else empty.
        means: Means, of the shape of ``rows``, for a term with means, else empty; without gradient.
    """

    rows: Tensor
    columns: Tensor
    means: Tensor

    def without_axis(self) -> "Sums":
        """The sums without the axis of scales, if K is 1."""
        return self if self.rows.shape[0] > 1 else Sums(self.rows.squeeze(0), self.columns.squeeze(0), self.means.squeeze(0))

    def with_axis(self, scales: int) -> "Sums":
        """The sums with the axis of scales again, if K is 1."""
        return self if scales > 1 else Sums(self.rows.unsqueeze(0), self.columns.unsqueeze(0), self.means.unsqueeze(0))


class Gradients(NamedTuple):
    """Gradients of the inputs of a sweep; empty for an input that needs no gradient.

    Attributes:
        x: Gradient of the rows.
        keys: (M, D) gradient of the keys.
        scale: Gradient of the scale of the term.
        offset: Gradient of the bias or the squared norms of the term.
    """

    x: Tensor
    keys: Tensor
    scale: Tensor
    offset: Tensor
