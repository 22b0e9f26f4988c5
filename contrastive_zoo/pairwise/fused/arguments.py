"""Sweeps and terms as kernels take them. Nothing here reads a value on an accelerator, so the host never waits.

Shapes: G sets of N rows, M keys, K scales, D features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrastive_zoo.devices import beside, written_beside
from contrastive_zoo.pairwise import fused
from contrastive_zoo.pairwise.kernels import floor_factor
from contrastive_zoo.pairwise.sweep import Sweep
from contrastive_zoo.pairwise.terms import KernelSum, LogSumExp, Softplus, Squares, Term

KERNELS = {"gaussian": fused.GAUSSIAN, "log": fused.LOG, "imq": fused.IMQ, "riesz": fused.RIESZ}


class Side(NamedTuple):
    """Rows or keys as kernels take them.

    Attributes:
        x: (N, D) rows, or (G, N, D) sets of rows, in the precision of operands.
        ids: (N,) ids, if kernels load ids.
        part: Flag PART of the kernels, for results of this side.
    """

    x: Tensor
    ids: Tensor | None
    part: int

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return self.x.shape[-2]

    @property
    def strides(self) -> tuple[int, int]:
        """Distances between sets and between rows."""
        return self.x.stride(0) if self.x.dim() == 3 else 0, self.x.stride(-2)


def sides_of(sweep: Sweep) -> tuple[Side, Side]:
    """Rows and keys of a sweep."""
    own, divided = sweep.keys is None, sweep.part[1] > 1
    rows = Side(_operand(sweep.x, sweep.operand, sweep.bound.rounded), _loaded(sweep, sweep.ids), (1 if own else 2) * divided)
    if sweep.keys is None:
        return rows, rows
    return rows, Side(_operand(sweep.keys, sweep.operand, sweep.bound.rounded_keys), _loaded(sweep, sweep.key_ids), 3 * divided)


@dataclass(frozen=True, eq=False)
class Function:
    """A term as kernels take it.

    Attributes:
        term: Flag TERM of the kernels.
        scale: The factor of similarities in slopes: a number, if the host knows it, or a tensor.
        scales: Flag SCALES of the kernels.
        number: Number of scales, K.
        level: What belongs to each row: a bias, or a squared length (None if it is 1).
        parameter: The parameter of a kernel.
        floor: The floor of squared distances over the mean of two squared lengths.
    """

    term: int
    scale: Tensor | float = 1.0
    scales: int = 0
    number: int = 1
    level: Tensor | None = None
    parameter: float = 0.0
    floor: float = 0.0

    @staticmethod
    def of(term: Term, x: Tensor) -> "Function":
        """The function of a term over rows."""
        if isinstance(term, LogSumExp):
            return Function(fused.LOGSUMEXP, *_scale(term.scale, x), term.scale.shape[0])
        if isinstance(term, Softplus):
            return Function(fused.SOFTPLUS, *_scale(term.scale.reshape(1, 1), x), level=flat(term.bias)[0])
        if isinstance(term, Squares):
            return Function(fused.SQUARES, 2.0)
        if isinstance(term, KernelSum):
            norms = None if term.squared_norms is None else term.squared_norms.contiguous()
            floor = floor_factor(term.kernel, x, term.rounding)
            # A squared distance has -2 similarities.
            return Function(KERNELS[term.kernel], -2.0, level=norms, parameter=term.parameter, floor=floor)
        raise TypeError(f"fused has no kernel for {type(term).__name__}. Add it to Function.of.")

    @property
    def numbers(self) -> tuple[float, float, int]:
        """Arguments of kernels: the parameter, the floor, and the distance between two levels."""
        return self.parameter, self.floor, int(self.level is None or any(self.level.stride()))


def flat(tensor: Tensor) -> tuple[Tensor, int]:
    """Entries next to each other, and the distance between two of them: 0 if all are one number, as gradients of a mean are."""
    return (tensor, 0) if tensor.numel() and not any(tensor.stride()) else (tensor.contiguous(), 1)


def _loaded(sweep: Sweep, ids: Tensor | None) -> Tensor | None:
    """Ids that kernels load, beside the rows; None if positions say who is who."""
    return None if ids is None or sweep.group else ids.contiguous()


def _operand(x: Tensor, operand: torch.dtype | None, rounded: Tensor | None) -> Tensor:
    """Rows in the precision of the products; the entries of a row next to each other."""
    if operand is not None:
        x = x.to(operand) if rounded is None else rounded
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _scale(scale: Tensor, x: Tensor) -> tuple[Tensor | float, int]:
    """The scale as a number, if the host knows it, or as a tensor beside the rows; and the flag SCALES of the kernels."""
    per_row = scale.shape[1] > 1
    if scale.is_cpu and scale.numel() == 1:
        return scale.item(), 0
    scale = beside(scale, x) if per_row else written_beside(scale, x)
    return scale.contiguous(), 2 if per_row else 1
